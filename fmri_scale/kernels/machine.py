"""Loops of a kernel's machine code, from the text that a disassembler prints; how many instructions each repeats.

In: the text of `nvdisasm -c` (NVIDIA) or the assembly that Triton keeps (AMD). The control flow graph is built from
its branches, so code that the compiler moved out of line still counts where it belongs. What runs how often is not
in the code; `launches` knows it.
"""

import collections
import re
from dataclasses import dataclass

WORK = re.compile(r"LDG|STG|HMMA|HGMMA|UTC\w*MMA|global_|buffer_|flat_|v_mfma")
"Opcodes without which a loop does no work: a loop of a cycle walk or of a wait for a barrier has none of them."

JUMPS = ("BRA", "CALL", "s_cbranch", "s_branch")
"A call may return, or may be how the compiler leaves a loop (sm_80)."


@dataclass(frozen=True)
class Loop:
    """A natural loop."""

    instructions: int
    "Warp instructions of one pass, each loop inside it counted once."
    own: int
    "Of these, the ones in no loop inside it."
    depth: int
    "Loops around it."
    kinds: dict[str, int]
    "How many of each opcode, own ones alone."

    @property
    def works(self) -> bool:
        """Whether it touches device memory or the tensor cores itself; else it searches or waits."""
        return any(WORK.match(kind) for kind in self.kinds)


def loops_of(code: str, amd: bool = False) -> tuple[int, list[Loop]]:
    """Return the number of instructions of a kernel and its loops in the order of the code."""
    lines, labels = _instructions(code, amd)
    successors = _successors(lines, labels)
    bodies = _natural_loops(successors)
    found = []
    for header in sorted(bodies):
        body = bodies[header]
        inside = set().union(*(b for h, b in bodies.items() if h != header and b < body), set())
        kinds = collections.Counter(lines[i].split()[0].split(".")[0] for i in body - inside)
        depth = sum(body < other for h, other in bodies.items() if h != header)
        found.append(Loop(len(body), len(body - inside), depth, dict(kinds.most_common())))
    return len(lines), found


def _instructions(code: str, amd: bool) -> tuple[list[str], dict[str, int]]:
    """Instructions in order, without their predicates, and the instruction each label stands before."""
    lines: list[str] = []
    labels: dict[str, int] = {}
    for line in code.splitlines():
        if label := re.match(r"^\s*(\.L\w+):", line):
            labels[label[1]] = len(lines)
        elif amd and (plain := re.match(r"^\t([a-z]+_\w+.*?)\s*(?:;.*)?$", line)):
            lines.append(plain[1])
        elif not amd and (coded := re.search(r"/\*[0-9a-f]{4,}\*/\s+(.*?);", line)):
            lines.append(coded[1].strip())
    return lines, labels


def _successors(lines: list[str], labels: dict[str, int]) -> list[list[int]]:
    """Instructions that may follow each one; predicates are cut off the lines once they are understood."""
    after: list[list[int]] = []
    for i, line in enumerate(lines):
        predicate = re.match(r"^@!?U?P\w+\s+", line)
        lines[i] = text = line[predicate.end() :] if predicate else line
        opcode = text.split()[0]
        target = re.search(r"(\.L\w+)", text) if opcode.startswith(JUMPS) else None
        next_ = [i + 1] if i + 1 < len(lines) else []
        if target and target[1] in labels:
            goes_on = predicate or opcode.startswith(("CALL", "s_cbranch")) or re.search(r"BRA\S*\s+!?U?P\d", text)
            after.append((next_ if goes_on else []) + [labels[target[1]]])
        else:
            ends = opcode.startswith(("EXIT", "RET", "s_endpgm")) and not predicate
            after.append([] if ends else next_)
    return [[j for j in targets if j < len(lines)] for targets in after]


def _natural_loops(successors: list[list[int]]) -> dict[int, set[int]]:
    """The instructions of each loop by its first one: what reaches a backward branch without passing the header."""
    before: list[list[int]] = [[] for _ in successors]
    for i, targets in enumerate(successors):
        for j in targets:
            before[j].append(i)
    dominators = _dominators(successors, before)
    loops: dict[int, set[int]] = {}
    for i, targets in enumerate(successors):
        for header in targets:
            if i in dominators and _dominates(dominators, header, i):
                body = loops.setdefault(header, {header})
                stack = [i]
                while stack:
                    if (here := stack.pop()) not in body:
                        body.add(here)
                        stack += [j for j in before[here] if j in dominators]
    return {header: body for header, body in loops.items() if len(body) > 1}


def _dominators(successors: list[list[int]], before: list[list[int]]) -> dict[int, int]:
    """Immediate dominators of what can be reached (Cooper, Harvey and Kennedy 2001, a simple, fast algorithm)."""
    order, seen, stack = [], {0}, [(0, iter(successors[0]))]
    while stack:
        here, targets = stack[-1]
        new = next((j for j in targets if j not in seen), None)
        if new is None:
            order.append(here)
            stack.pop()
        else:
            seen.add(new)
            stack.append((new, iter(successors[new])))
    number = {i: n for n, i in enumerate(order)}
    found, changed = {0: 0}, True
    while changed:
        changed = False
        for i in reversed(order[:-1]):
            known = [j for j in before[i] if j in found]
            best = known[0]
            for other in known[1:]:
                while best != other:
                    while number[best] < number[other]:
                        best = found[best]
                    while number[other] < number[best]:
                        other = found[other]
            if found.get(i) != best:
                found[i], changed = best, True
    return found


def _dominates(dominators: dict[int, int], a: int, b: int) -> bool:
    while b != a and b != 0:
        b = dominators[b]
    return a == b
