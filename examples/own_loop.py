import torch
from torch.nn.functional import cross_entropy

from analysis import Observer
from nets import Widen, build, grow, preset, seed_of

batches = [(torch.randn(32, 3, 32, 32), torch.randint(10, (32,))) for _ in range(20)]  # your data
net = build(seed_of(preset("resnet20"), width=0.5, blocks=1))
optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
with Observer(net, optimizer) as observer:
    for step, (images, labels) in enumerate(batches):
        optimizer.zero_grad()
        cross_entropy(net(images), labels).backward()
        optimizer.step()
        if step == 9:  # grow where the branch is largest beside its stream
            blocks = {k: r for k, r in observer.readings().items() if r.residual_ratio}
            block = max(blocks, key=lambda name: blocks[name].residual_ratio)
            grown = grow(net, [Widen(block, by=8)], optimizer, probe=images)
            net, optimizer = grown.network, grown.optimizer
            observer.follow(grown)
            print(f"{block} is wider by 8; outputs moved by {grown.difference:.1e}")
