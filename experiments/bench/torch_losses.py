"""Losses as a few lines of eager PyTorch, to compare speeds with; maps channels first.

Each returns the mean over the batch. They are what one would write without thinking of
dead channels, masks or large logits.
"""

import torch
from torch.nn import functional as F


def kl(p_logits, q_logits, temperature=1.0):
    """KL(p || q) of two softmaxes, times T squared, mean over the batch."""
    log_q = F.log_softmax(q_logits / temperature, dim=-1)
    p = F.softmax(p_logits / temperature, dim=-1)
    return temperature**2 * F.kl_div(log_q, p, reduction="batchmean")


def kd(s, t):
    return kl(t, s, 4.0)


def reverse_kd(s, t):
    return kl(s, t, 1.0)


def soft_cross_entropy(s, t):
    return F.cross_entropy(s, F.softmax(t, dim=-1))


def logit_mse(s, t):
    return F.mse_loss(s, t)


def probability_mse(s, t):
    return (F.softmax(s, -1) - F.softmax(t, -1)).pow(2).sum(-1).mean()


def hard_label(s, t):
    return F.cross_entropy(s, t.argmax(-1))


def label_smoothing(s, labels):
    return F.cross_entropy(s, labels, label_smoothing=0.1)


def binary_kd(s, t):
    p = torch.sigmoid(t)
    entropy = F.binary_cross_entropy_with_logits(t, p)
    return F.binary_cross_entropy_with_logits(s, p) - entropy


def jsd(s, t):
    log_p, log_q = F.log_softmax(t, -1), F.log_softmax(s, -1)
    log_m = torch.logsumexp(torch.stack([log_p, log_q]), dim=0) - 0.6931472
    both = F.kl_div(log_m, log_p, reduction="batchmean", log_target=True)
    return (both + F.kl_div(log_m, log_q, reduction="batchmean", log_target=True)) / 2


def ttm(s, t):
    return kl(0.2 * t, s)


def wttm(s, t):
    p = F.softmax(0.2 * t, -1)
    weight = F.softmax(t, -1).pow(0.2).sum(-1)
    return (weight * (p * (p.log() - F.log_softmax(s, -1))).sum(-1)).mean()


def lskd(s, t):
    standard = lambda z: (
        (z - z.mean(-1, keepdim=True)) / (z.std(-1, keepdim=True) + 1e-7)
    )
    return kl(standard(t), standard(s), 2.0)


def mutual(s, peers):
    return sum(kl(peer, s) for peer in peers) / len(peers)


def mlkd_instance(s, t):
    return sum(kl(t, s, float(temperature)) for temperature in (2, 3, 4, 5, 6))


def mlkd_batch(s, t):
    p, q = F.softmax(t / 4, -1), F.softmax(s / 4, -1)
    return (p @ p.T - q @ q.T).pow(2).sum() / len(s)


def mlkd_class(s, t):
    p, q = F.softmax(t / 4, -1), F.softmax(s / 4, -1)
    return (p.T @ p - q.T @ q).pow(2).sum() / s.shape[-1]


def dist(s, t):
    p, q = F.softmax(t, -1), F.softmax(s, -1)
    centred = lambda x, dim: x - x.mean(dim, keepdim=True)
    r = lambda dim: F.cosine_similarity(centred(p, dim), centred(q, dim), dim=dim)
    return 2 - r(1).mean() - r(0).mean()


def dkd(s, t, labels):
    target = F.one_hot(labels, s.shape[-1]).bool()
    p, q = F.softmax(t / 4, -1), F.softmax(s / 4, -1)
    split = lambda x: torch.stack([x[target], 1 - x[target]], -1)
    tckd = F.kl_div(split(q).log(), split(p), reduction="batchmean")
    return 16 * tckd + 8 * kl(t - 1000.0 * target, s - 1000.0 * target, 4.0)


def nkd(s, t, labels):
    target = F.one_hot(labels, s.shape[-1]).bool()
    p = F.softmax(t, -1)[target]
    others = lambda z: z[~target].view(len(z), -1)
    soft = F.cross_entropy(others(s), F.softmax(others(t), -1))
    return -(p * F.log_softmax(s, -1)[target]).mean() + 1.5 * soft


def wsld(s, t, labels):
    log_q = F.log_softmax(s / 4, -1)
    soft = -16 * (F.softmax(t / 4, -1) * log_q).sum(-1)
    ratio = F.cross_entropy(s.detach(), labels, reduction="none") / F.cross_entropy(
        t, labels, reduction="none"
    )
    return ((1 - torch.exp(-ratio)) * soft).mean()


def ofa(s, t, labels):
    target = F.one_hot(labels, s.shape[-1])
    weight = (F.softmax(t, -1) + target) ** 1.5 - target
    return -(weight * F.log_softmax(s, -1)).sum(-1).mean()


def wkd_logits(s, t, labels, cost):
    target = F.one_hot(labels, s.shape[-1]).bool()
    of_label = -(F.softmax(t, -1)[target] * F.log_softmax(s, -1)[target]).mean()
    others = lambda z: F.softmax((z / 2.0).masked_fill(target, -torch.inf), -1)
    q, p, kernel = others(s), others(t), torch.exp(-cost / 0.05)
    u = torch.full_like(q, 1 / s.shape[-1]).masked_fill(target, 0)
    for _ in range(10):
        v = p / (u @ kernel + 1e-8)
        u = q / (v @ kernel.T + 1e-8)
    return of_label + 30 * (u * (v @ (kernel * cost).T)).sum(-1).mean()


def sdd(s, t, labels):
    def cells(z):
        means = [F.adaptive_avg_pool2d(z, m).flatten(2) for m in (1, 2, 4)]
        return torch.cat(means, 2).mT

    s, t = cells(s), cells(t)
    right = t.argmax(-1) == labels[:, None]
    weight = 1.0 + (right != right[:, :1])
    each = F.kl_div(F.log_softmax(s / 4, -1), F.softmax(t / 4, -1), reduction="none")
    return 16 * (weight * each.sum(-1)).mean()


def hint(s, t):
    return F.mse_loss(s, t)


def at(s, t):
    attention = lambda f: F.normalize(f.pow(2).mean(1).flatten(1))
    return (attention(s) - attention(t)).pow(2).mean()


def fsp(s1, s2, t1, t2):
    flow = lambda a, b: a.flatten(2) @ b.flatten(2).mT / a[0, 0].numel()
    return (flow(s1, s2) - flow(t1, t2)).pow(2).mean()


def nst(s, t):
    s, t = F.normalize(s.flatten(2), dim=2), F.normalize(t.flatten(2), dim=2)
    kernel = lambda a, b: (a @ b.mT).pow(2).mean()
    return kernel(s, s) + kernel(t, t) - 2 * kernel(s, t)


def vid(mean, t, raw):
    variance = (F.softplus(raw) + 1e-5).view(1, -1, 1, 1)
    return 0.5 * ((mean - t).pow(2) / variance + variance.log()).mean()


def ab(s, t):
    return torch.where(t > 0, F.relu(1 - s), F.relu(1 + s)).pow(2).mean()


def ofd(s, t, margin):
    target = torch.maximum(t, margin.view(1, -1, 1, 1))
    counts = (s > target) | (target > 0)
    return ((s - target).pow(2) * counts).sum() / len(s)


def factor_transfer(s, t):
    return (F.normalize(s.flatten(1)) - F.normalize(t.flatten(1))).abs().mean()


def hcl(s, t):
    loss = F.mse_loss(s, t)
    for weight, size in ((0.5, 4), (0.25, 2), (0.125, 1)):
        pooled = (F.adaptive_avg_pool2d(x, (size, size)) for x in (s, t))
        loss = loss + weight * F.mse_loss(*pooled)
    return loss / 1.875


def cwd(s, t):
    channels = s.shape[1]
    return kl(t.flatten(2).flatten(0, 1), s.flatten(2).flatten(0, 1)) * (1 / channels)


def ickd(s, t):
    correlation = lambda f: F.normalize(f.flatten(2) @ f.flatten(2).mT, dim=2)
    return (correlation(s) - correlation(t)).pow(2).sum() / s.shape[1] / len(s)


def pearson_features(s, t):
    def standard(x):
        x = x.transpose(0, 1).flatten(1)
        return (x - x.mean(1, keepdim=True)) / x.std(1, keepdim=True)

    return F.mse_loss(standard(s), standard(t)) / 2


def wasserstein_features(s, t):
    s, t = s.flatten(2), t.flatten(2)
    deviation = lambda x: (x.var(2) + 1e-5).sqrt()
    means = (s.mean(2) - t.mean(2)).pow(2).sum(1)
    return (means + (deviation(s) - deviation(t)).pow(2).sum(1)).mean()


def cosine(s, t):
    return 1 - F.cosine_similarity(s, t, dim=1).mean()


def sp(s, t):
    similarity = lambda f: F.normalize(f.flatten(1) @ f.flatten(1).T)
    return (similarity(s) - similarity(t)).pow(2).mean()


def rkd_distance(s, t):
    def relative(f):
        d = torch.cdist(f, f)
        return d / d[d > 0].mean()

    return F.smooth_l1_loss(relative(s), relative(t))


def rkd_angle(s, t):
    def cosines(f):
        e = F.normalize(f[None] - f[:, None], dim=2)
        return e @ e.mT

    return F.smooth_l1_loss(cosines(s), cosines(t))


def pkt(s, t):
    def probabilities(f):
        f = F.normalize(f)
        kernel = (f @ f.T + 1) / 2
        return kernel / kernel.sum(1, keepdim=True)

    p, q = probabilities(t), probabilities(s)
    return (p * ((p + 1e-7) / (q + 1e-7)).log()).mean()


def cc(s, t):
    def kernel(f):
        c = 0.8 * F.normalize(f) @ F.normalize(f).T
        return 2.718281828**-0.8 * (1 + c + c.pow(2) / 2)

    return F.mse_loss(kernel(s), kernel(t))


def crd(s, t, bank_s, bank_t, positives, negatives):
    candidates = torch.cat([positives[:, None], negatives], 1)
    log_odds = torch.log(torch.tensor(negatives.shape[1] / len(bank_s)))

    def contrast(anchors, bank):
        scores = (anchors @ bank.T / 0.07).gather(1, candidates) - log_odds
        return F.softplus(-scores[:, 0]) + F.softplus(scores[:, 1:]).sum(1)

    return (contrast(s, bank_t) + contrast(t, bank_s)).mean()
