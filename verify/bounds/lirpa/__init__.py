"""auto-LiRPA as a second opinion."""
