"""What the tests of Hugging Face's directories share: their logits, ways of feeding ours, and how near they must be."""

import torch


@torch.no_grad()
def stepwise(model, tokens, keyword="cache"):
    """Their logits (B, T, V) one token at a time.

    :param keyword: what the model calls its cache when it is given
    """
    cache, logits = None, []
    for token in tokens.split(1, dim=1):
        out = model(token, **{keyword: cache}, use_cache=True)
        cache = out[keyword]
        logits.append(out.logits)
    return torch.cat(logits, dim=1)


@torch.no_grad()
def in_pieces(ours, tokens, pieces):
    """Our logits (B, T, V) where each call gets so many tokens."""
    state, logits = None, []
    for piece in tokens.split(pieces, dim=1):
        y, state = ours(piece, state)
        logits.append(y)
    return torch.cat(logits, dim=1)


def close(ours, theirs):
    """To 1e-5 of the largest entry, which is between 1 and 20."""
    scale = float(theirs.abs().max())
    assert 1 < scale < 20
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5 * scale)


@torch.no_grad()
def check_rejected_drafts_and_a_tree(ours, tokens, expected, vocabulary):
    """Drafts that are dropped, and the wrong branch of a tree, leave no trace.

    :param tokens: (2, T >= 11)
    :param expected: their logits (2, T, V)
    """
    _, state = ours(tokens[:, :8])
    _, drafted = ours(torch.randint(vocabulary, (2, 5)), state)
    wrong = torch.randint(vocabulary, (2, 1))
    nodes = torch.cat((tokens[:, 8:9], wrong, tokens[:, 9:10]), dim=1)
    y, after = ours(nodes, drafted.at(0), parents=[-1, -1, 0])
    close(y[:, [0, 2]], expected[:, 8:10])
    close(ours(tokens[:, 10:], after.path([0, 2]))[0], expected[:, 10:])
