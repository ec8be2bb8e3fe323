"""What a reader needs to know to judge the numbers, in words that do not depend on them."""

QUESTION = (
    "Does a looked-up memory, or a graph over what was looked up, buy more bits per byte than a wider"
    " or longer-trained dense transformer, at equal compute with everything counted?"
)

CAUSAL = (
    "Causal attention is billed by the query-key pairs that are multiplied, for every arm alike: a block of 64 queries"
    " meets the keys up to its end, at 256 positions 25 % more pairs than live. Fused attention of torch is billed by"
    " the pairs that live, about half of the square. A counter that bills the whole square gives larger amounts."
)

CONVENTIONS = (
    "Training FLOPs are counted twice: every operation, and matrix products alone. Searching and building count in full"
    " under both, and a claim has to hold both ways."
)

INTEGERS = (
    "Sums of 4-bit codes are billed like any other operation, though a processor makes 32 to 512 of them at once. Of"
    " a search that is mostly such sums, seconds and bytes tell more than FLOPs. Their part of the search's operations:"
)

BREAK_EVEN = (
    "Break-even: N = building / (FLOPs per token of dense at the arm's loss - FLOPs per token of the arm, search"
    " included), the number of served tokens at which building and reading together cost what reading dense of equal"
    " loss costs. “none”: that dense is not dearer to read, so there is no such number. The rest of the training bill"
    " is put aside on both sides; ends are those of the interval of the multiplier on inference FLOPs."
)

BEYOND = (
    "“beyond 3.33x [2.68, open]”: the arm is better than every dense run measured, the best of which used 3.33 times"
    " as much; 2.68 is the lower end of the interval. “at least 3.33x”: the whole interval lies beyond them. “below”"
    " and “at most”: likewise, worse than every dense run measured. “open”: dense was not measured that far."
)

CONTROLS = {
    "dense + counts": (
        "The dense model mixed with counts of the n-grams in the same text. It trains nothing, so a "
        "learned memory that does not beat it has learned nothing that counting would not give."
    ),
    "dense + counts + recency": (
        "The same, mixed with counts of what the document itself has said so far in the window too: what a cache of "
        "earlier states has to beat. Arms are mixed with the same, under their own name."
    ),
    "unigram table": (
        "A table of the size of the n-gram memory, indexed by the last token alone: what the "
        "parameters buy without the n-grams."
    ),
    "random neighbours": (
        "The same reader fed with neighbours drawn at random: what the reader's own compute buys "
        "without the search."
    ),
    "shuffled edges": (
        "The same graph reader with its edges rewired: what message passing buys without the graph."
    ),
    "memory off": (
        "The trained arm evaluated with its memory silenced: how far it leans on it. It was not "
        "trained this way, so this is no fair model."
    ),
}

# To be told what the reference is called, which depends on whether it was tuned.
COUNTING = (
    (
        "Every operation that ran was priced while it ran, by operator; one that has no price stops "
        "the run. The training bill holds forward, backward and optimizer work, building the memory "
        "(encoding, training and filling the index) and every search. Nothing is left out because it "
        "is cheap."
    ),
    CAUSAL,
    (
        "A multiplier is the amount of compute at which {reference} reaches an arm's loss, over the "
        "amount the arm used: 2x means that dense needs twice as much. The frontier has one point a "
        "budget: the dense width with the lowest mean loss on validation text; its loss on test text "
        "is what is compared. Between the points it is interpolated, straight in the logarithm of the"
        " amount (from four budgets on, along a power law with a floor if the points lie on one). "
        "Straight chords flatter an arm a little, by about 5 % at most for budgets three times apart."
    ),
    (f"Outside of the budgets that dense was run at there is no number, only a bound. {BEYOND}"),
    (
        "The multipliers of an arm speak of the same dense model, the one of the frontier that predicts as"
        " well as the arm. For inference a stricter figure is given too, in which the training bill "
        "is put aside: each dense width with whichever budget of the table suits it best. A claim "
        "about inference has to hold both ways, and so has one about seconds or bytes, where the stricter "
        "figure is against dense of any width: the width that is best at a number of FLOPs is seldom the "
        "quickest for its loss. FLOPs per token at inference include the search."
    ),
    (
        "Intervals are 95 %. Those of multipliers and differences are over seeds and, where the runs tell the loss "
        "of each test document, over documents, drawn jointly for all runs: each seed's spread is pooled over the "
        "arms of a budget, since two to five seeds are too few to resample (an arm that spreads more than chance "
        "allows keeps its own), and all arms share the documents. Intervals of a loss itself are over seeds alone: "
        "other documents would move all arms together. They say nothing of other corpora, other sizes, or of rates "
        "that were not tried. Seconds are those of the machine that ran the study, with whatever else it was doing."
    ),
    (
        "In the regime “same tokens” a store holds only what the network trained on, and most of it. In “whole "
        "corpus” it holds all training text, and so do its controls; what is gained there is access "
        "to data, not architecture, and the two regimes never share a row."
    ),
)

PAIRS = (
    "Runs of one seed saw the same data in the same order, and all runs are scored on the same documents, so "
    "differences are known better than losses. Not corrected for their number: of twenty equal pairs one is expected "
    "to look different."
)

GENERALISATION = (
    "The same models on sources of which the training text, and so every store, holds nothing: for code, whole "
    "packages. The test text is other files of the sources trained on: what an arm gains there and not elsewhere it "
    "owes to the likeness of its files."
)

COPYING = (
    "Random strings are shown twice. A model that has learned to copy from its context predicts the "
    "second copy far better than the first. Dense models learn this somewhere along their training; a"
    " gain measured before that and one measured after are different facts."
)
