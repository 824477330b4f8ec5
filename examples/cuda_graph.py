"""A whole training step as one CUDA graph: the host launches one thing instead of hundreds.

    python examples/cuda_graph.py --steps 100

Without a GPU the same step runs as it is. The clips are random: put the batch of your loader there.
"""

import argparse

import torch
import torch.nn.functional as F
from torch import nn

from iivcl import IIVCLLoss, NNSupportQueue, augment, backbones
from iivcl.momentum import cosine_momentum, momentum_copy, momentum_update_

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--steps", type=int, default=100)
parser.add_argument("--videos", type=int, default=16)
args = parser.parse_args()
B, T, SIZE, DIM, WARM_UP, LR = args.videos, 8, 112, 128, 3, 1e-3
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

# Everything that a step reads from outside lives in these tensors, and is written into them.
clips = torch.zeros(B, 2, 3, T, 128, 170, dtype=torch.uint8, device=DEVICE)
ids = torch.zeros(B, dtype=torch.int64, device=DEVICE)
momentum, lr = torch.zeros((), device=DEVICE), torch.zeros((), device=DEVICE)

backbone = backbones.slow_resnet(18)
encoder = nn.Sequential(backbone, backbones.ProjectionHead(backbone.feature_dim, 512, DIM))
encoder.to(DEVICE, memory_format=torch.channels_last_3d)
key_encoder = momentum_copy(encoder)
queue, criterion = NNSupportQueue(4096, DIM).to(DEVICE), IIVCLLoss()
transform = augment.rho_moco(SIZE)
fused = {"capturable": True} if DEVICE == "cuda" else {}  # its step counter is on the device, too
optimizer = torch.optim.AdamW(encoder.parameters(), lr=lr, **fused)


# --8<-- [start:step]
def step() -> torch.Tensor:
    optimizer.zero_grad()  # gradients are None: backward makes them in the graph's own memory
    a, b = transform(clips[:, 0]), transform(clips[:, 1])  # (B, C, T, H, W), drawn on the device
    momentum_update_(key_encoder, encoder, momentum)
    with torch.autocast(DEVICE, torch.bfloat16):
        q = encoder(a)  # (B, D)
        with torch.no_grad():
            k = F.normalize(key_encoder(b).float(), dim=1)  # (B, D)
    loss = criterion(q, k, queue, ids=ids).loss
    loss.backward()
    optimizer.step()
    queue.enqueue(k, ids)
    return loss.detach()


# --8<-- [end:step]


for i in range(args.steps):
    clips.copy_(torch.randint(0, 256, clips.shape, dtype=torch.uint8))
    ids.copy_(torch.arange(i * B, (i + 1) * B))
    lr.fill_(LR * min(1, (i + 1) / 10))
    momentum.fill_(cosine_momentum(i, args.steps, base=0.99))
    if DEVICE == "cpu":
        loss = step()
    elif i < WARM_UP:  # on a side stream, so that libraries choose and allocate outside the graph
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            loss = step()
        torch.cuda.current_stream().wait_stream(side)
    else:
        if i == WARM_UP:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):  # records and does not run
                loss = step()
        graph.replay()
    if i % 10 == 0 or i == args.steps - 1:
        print(f"step {i}: loss {loss.item():.3f}, rows {len(queue)}")
