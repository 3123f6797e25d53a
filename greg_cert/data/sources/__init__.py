"""Data sources: one a file, which holds its settings and reads its images.

A new one is a subclass of `greg_cert.data.sources.base.DataSource` in a file of its own, and a line
in `greg_cert.data.sources.table`. The `data` part of a configuration, its errors and
`greg-cert config schema` follow from these.
"""
