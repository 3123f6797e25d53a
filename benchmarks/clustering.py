"""k-means of one batch: ours against scikit-learn and faiss, in time and in inertia.

Run: python benchmarks/clustering.py [--repeats 30] [--seeds 60] [--threads 2]
L2-normalised features, 384 x 128 with k = 64: of crops of scikit-image's photographs under a small
network (untrained, and trained for a moment to tell the photographs apart), Gaussian blobs, and
isotropic noise. Times are interleaved, so that a busy machine slows all alike.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import faiss
import numpy as np
import skimage.data
import sklearn
import torch
import torch.nn.functional as F
from sklearn.cluster import KMeans
from threadpoolctl import threadpool_limits
from torch import Tensor, nn

from greg_cert.train.outliers.kmeans import kmeans

N, DIM, K, SETS = 384, 128, 64, 4
PHOTOGRAPHS = ["astronaut", "camera", "chelsea", "coffee", "coins", "rocket", "moon", "clock"]
PHOTOGRAPHS += ["hubble_deep_field", "cell", "retina", "brick", "grass", "gravel", "page", "text"]


def photographs() -> list[Tensor]:
    """Those at hand without a download, (3, H, W) in [0, 1]."""
    images = []
    for name in PHOTOGRAPHS:
        try:
            array = np.ascontiguousarray(getattr(skimage.data, name)())
        except Exception as e:  # not installed with the package
            print(f"without {name}: {type(e).__name__}")
            continue
        image = torch.from_numpy(array if array.ndim == 3 else np.stack([array] * 3, axis=-1))
        images.append(image[..., :3].permute(2, 0, 1).float() / 255)
    return images


def crops(images: list[Tensor], count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Random 64 x 64 windows at half size, and the photograph of each."""
    which = torch.randint(len(images), (count,), generator=generator)
    windows = []
    for i in which.tolist():
        _, h, w = images[i].shape
        y, x = (int(torch.randint(n - 64, (1,), generator=generator)) for n in (h, w))
        windows.append(F.avg_pool2d(images[i][:, y : y + 64, x : x + 64], 2))
    return torch.stack(windows), which


def photograph_features(steps: int) -> list[Tensor]:
    """Unit features of a three-layer network after some steps of telling the photographs apart."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    images = photographs()
    layers: list[nn.Module] = []
    for a, b in ((3, 32), (32, 64), (64, DIM)):
        layers += [nn.Conv2d(a, b, 3, 2, 1), nn.BatchNorm2d(b), nn.ReLU()]
    body = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    head = nn.Linear(DIM, len(images))
    optimiser = torch.optim.Adam([*body.parameters(), *head.parameters()], 1e-3)
    for step in range(max(steps, 5)):  # a few passes at least, for the running statistics
        inputs, which = crops(images, 64, generator)
        loss = F.cross_entropy(head(body(inputs)), which)
        if step < steps:
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    body.eval()
    with torch.no_grad():
        return [F.normalize(body(crops(images, N, generator)[0]), dim=1) for _ in range(SETS)]


def blobs(seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    centres = F.normalize(torch.randn(K, DIM, generator=generator), dim=1)
    mine = centres[torch.randint(K, (N,), generator=generator)]
    return F.normalize(mine + 0.04 * torch.randn(N, DIM, generator=generator), dim=1)


def noise(seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(N, DIM, generator=generator), dim=1)


def ours(points: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return kmeans(points, K, backend="torch", generator=generator)


def scikit(points: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    fitted = KMeans(K, n_init=3, random_state=seed).fit(points.numpy())
    return torch.from_numpy(fitted.cluster_centers_), torch.from_numpy(fitted.labels_).long()


def by_faiss(points: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    array = points.numpy()
    engine = faiss.Kmeans(DIM, K, niter=10, seed=seed, min_points_per_centroid=1)
    engine.train(array)
    _, assigned = engine.index.search(array, 1)
    return torch.from_numpy(engine.centroids), torch.from_numpy(assigned[:, 0])


METHODS: dict[str, Callable[[Tensor, int], tuple[Tensor, Tensor]]] = {
    "scikit-learn, n_init=3": scikit,
    "ours": ours,
    "faiss": by_faiss,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--seeds", type=int, default=60)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    faiss.omp_set_num_threads(args.threads)
    print(
        f"{N} x {DIM}, k={K}, {args.threads} threads, {args.repeats} interleaved repeats, "
        f"{args.seeds} seeds; torch {torch.__version__}, scikit-learn {sklearn.__version__}, "
        f"faiss {faiss.__version__}"
    )
    data = {
        "photographs, untrained": photograph_features(0),
        "photographs, trained": photograph_features(150),
        "blobs": [blobs(i) for i in range(SETS)],
        "noise": [noise(i) for i in range(SETS)],
    }
    with threadpool_limits(args.threads):
        for name, sets in data.items():
            seconds: dict[str, list[float]] = {method: [] for method in METHODS}
            inertia: dict[str, list[float]] = {method: [] for method in METHODS}
            for seed in range(max(args.seeds, args.repeats + 3)):
                points = sets[seed % SETS]
                for method, run in METHODS.items():
                    begun = time.perf_counter()
                    centres, assigned = run(points, seed)
                    if 3 <= seed < args.repeats + 3:  # the first are for warming up
                        seconds[method].append(time.perf_counter() - begun)
                    inertia[method].append(float((points - centres[assigned]).square().sum()))
            reference = "scikit-learn, n_init=3"
            for method in METHODS:
                low, middle, high = statistics.quantiles(seconds[method], n=4)
                mean = statistics.mean(inertia[method])
                faster = statistics.median(seconds[reference]) / middle
                worse = mean / statistics.mean(inertia[reference])
                print(
                    f"{name:24s}{method:24s}{1e3 * middle:7.2f} ms "
                    f"[{1e3 * low:.2f}, {1e3 * high:.2f}]  {faster:6.2f} x faster   "
                    f"inertia {mean:8.3f}, {worse:.4f} of the reference"
                )


if __name__ == "__main__":
    main()
