"""The losses on cross-attention maps, literally, on Python numbers: a map is a list of rows.

Written from the formulas of Attend-and-Excite (arXiv 2301.13826), SynGen (2306.08877), Predicated Diffusion
(2311.16117), CONFORM (2312.06059), T-SAM (CVPR 2025) and Divide & Bind (2307.10864). A word is a tuple of positions, a
group a noun and its modifiers. No map may be 0 or 1 anywhere.
"""

from math import exp, log, prod, sqrt

Map = list[list[float]]
Word = tuple[int, ...]
Group = tuple[Word, list[Word]]


def pixels(map_: Map) -> list[float]:
    return [value for row in map_ for value in row]


def distribution(map_: Map) -> list[float]:
    total = sum(pixels(map_))
    return [value / total for value in pixels(map_)]


def reflected(place: int, size: int) -> int:
    return -place if place < 0 else 2 * (size - 1) - place if place >= size else place


def smoothed(map_: Map) -> Map:
    height, width = len(map_), len(map_[0])
    weights = {(i, j): exp(-((i / 1.0) ** 2)) * exp(-((j / 1.0) ** 2)) for i in (-1, 0, 1) for j in (-1, 0, 1)}
    total = sum(weights.values())
    result = [[0.0] * width for _ in range(height)]
    for y in range(height):
        for x in range(width):
            for (i, j), weight in weights.items():
                result[y][x] += weight / total * map_[reflected(y + i, height)][reflected(x + j, width)]
    return result


def words_only(maps: list[Map], scale: float, end: int) -> list[Map]:
    height, width = len(maps[0]), len(maps[0][0])
    result = [[[0.0] * width for _ in range(height)] for _ in range(1, end)]
    for y in range(height):
        for x in range(width):
            total = sum(exp(scale * maps[token][y][x]) for token in range(1, end))
            for token in range(1, end):
                result[token - 1][y][x] = exp(scale * maps[token][y][x]) / total
    return result


def summed(maps: list[Map], word: Word) -> Map:
    height, width = len(maps[0]), len(maps[0][0])
    return [[sum(maps[piece][y][x] for piece in word) for x in range(width)] for y in range(height)]


# Attend-and-Excite


def attend_and_excite(maps: list[Map], words: list[Word], end: int) -> float:
    """Algorithm 1: of the target whose best piece is attended to least; a softmax over the words, smoothed."""
    shares = [smoothed(map_) for map_ in words_only(maps, 100.0, end)]
    return max(max(0.0, 1 - max(max(pixels(shares[piece - 1])) for piece in word)) for word in words)


# SynGen


def kl(p: list[float], q: list[float]) -> float:
    return sum(a * log(a / b) for a, b in zip(p, q, strict=True))


def symmetric_kl(one: Map, other: Map) -> float:
    p, q = distribution(one), distribution(other)
    return (kl(p, q) + kl(q, p)) / 2


def negative(maps: list[Map], word: Word, outside: list[int]) -> float:
    if not outside:
        return 0.0
    return -sum(max(symmetric_kl(maps[x], maps[u]) for x in word) for u in outside) / len(outside)


def syngen(maps: list[Map], groups: list[Group], words: list[int]) -> float:
    loss = 0.0
    for noun, modifiers in groups:
        inside = [position for word in [noun, *modifiers] for position in word]
        outside = [word for word in words if word not in inside]
        if not modifiers:
            loss += negative(maps, noun, outside)
        for modifier in modifiers:
            loss += max(symmetric_kl(maps[m], maps[n]) for m in modifier for n in noun)
            loss += (negative(maps, noun, outside) + negative(maps, modifier, outside)) / 2
    return loss


# Predicated Diffusion


def word_map(maps: list[Map], word: Word) -> Map:
    return [[min(1.0, value) for value in row] for row in summed(maps, word)]


def inverted(map_: Map) -> Map:
    return [[1 - value for value in row] for row in map_]


def exists(map_: Map) -> float:
    return -log(1 - prod(1 - value for value in pixels(map_)))


def implies(one: Map, other: Map) -> float:
    return -sum(log(1 - a * (1 - b)) for a, b in zip(pixels(one), pixels(other), strict=True))


def predicated(
    maps: list[Map], nouns: list[Word], groups: list[Group], owners: list[tuple[Word, Word]], leak: float
) -> float:
    loss = sum(exists(word_map(maps, noun)) for noun in nouns)
    for number, (noun, modifiers) in enumerate(groups):
        of_noun = word_map(maps, noun)
        for modifier in modifiers:
            of_modifier = word_map(maps, modifier)
            loss += implies(of_modifier, of_noun) + implies(of_noun, of_modifier)
        for other_number, (_, strangers) in enumerate(groups):
            if other_number != number:
                for stranger in strangers:
                    loss += leak * implies(of_noun, inverted(word_map(maps, stranger)))
    for owned, owner in owners:
        loss += implies(word_map(maps, owned), word_map(maps, owner))
    return loss


# CONFORM


def cosine(one: Map, other: Map) -> float:
    a, b = pixels(one), pixels(other)
    product = sum(x * y for x, y in zip(a, b, strict=True))
    return product / (sqrt(sum(x * x for x in a)) * sqrt(sum(y * y for y in b)))


def conform(maps: list[Map], groups: list[Word], before: list[Map] | None, temperature: float) -> float:
    members = [(number, smoothed(maps[position])) for number, group in enumerate(groups) for position in group]
    if before is not None:
        members += [(number, smoothed(before[position])) for number, group in enumerate(groups) for position in group]
    losses = []
    for a, (class_a, map_a) in enumerate(members):
        for p, (class_p, map_p) in enumerate(members):
            if a == p or class_a != class_p:
                continue
            negatives = [exp(cosine(map_a, map_n) / temperature) for class_n, map_n in members if class_n != class_a]
            if negatives:
                positive = exp(cosine(map_a, map_p) / temperature)
                losses.append(-log(positive / (positive + sum(negatives))))
    return sum(losses) / len(losses) if losses else 0.0


# T-SAM


def text_similarity(attention: list[list[float]], end: int, power: float) -> list[list[float]]:
    result = []
    for i in range(1, end):
        row = [attention[i][j] ** power for j in range(1, end)]
        result.append([value / (sum(row) + 1e-7) for value in row])
    return result


def t_sam(maps: list[Map], wanted: list[list[float]], smooth: bool) -> float:
    s, loss = len(wanted), 0.0
    words = [smoothed(map_) if smooth else map_ for map_ in maps[1 : s + 1]]
    for i in range(1, s + 1):
        row = [cosine(words[i - 1], words[j - 1]) for j in range(1, i)] + [1.0]
        if i >= 2:
            loss += i / s * sum(abs(wanted[i - 1][j] - row[j] / sum(row)) for j in range(i))
    return loss


# Divide & Bind


def total_variation(map_: Map) -> float:
    height, width = len(map_), len(map_[0])
    down = sum(abs(map_[i + 1][j] - map_[i][j]) for i in range(height - 1) for j in range(width))
    across = sum(abs(map_[i][j + 1] - map_[i][j]) for i in range(height) for j in range(width - 1))
    return down / ((height - 1) * width) + across / (height * (width - 1))


def jensen_shannon(one: Map, other: Map) -> float:
    p, q = distribution(one), distribution(other)
    middle = [(a + b) / 2 for a, b in zip(p, q, strict=True)]
    return (kl(p, middle) + kl(q, middle)) / 2


def divide_and_bind(maps: list[Map], targets: list[Word], groups: list[Group], weight: float) -> float:
    attend = -min(max(total_variation(maps[piece]) for piece in target) for target in targets) if targets else 0.0
    pairs = [(noun, modifier) for noun, modifiers in groups for modifier in modifiers]
    bind = sum(jensen_shannon(summed(maps, noun), summed(maps, modifier)) for noun, modifier in pairs)
    return attend + weight * bind
