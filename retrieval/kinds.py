"""FAISS's kinds of index: which of them have a price, and why the others are refused."""

from __future__ import annotations

from typing import Any

from retrieval.runtime import faiss

__all__ = [
    "FLAT",
    "core",
    "fast_scan",
    "product_quantizer",
    "refuse_unpriced",
    "scaled",
    "tables_by_product",
    "unwrap",
]

FLAT = (faiss.IndexFlat, faiss.IndexFlatL2, faiss.IndexFlatIP)
_GRAPHS = (faiss.IndexHNSWFlat, faiss.IndexHNSWSQ, faiss.IndexHNSWPQ)
_LISTS = (
    faiss.IndexIVFFlat,
    faiss.IndexIVFScalarQuantizer,
    faiss.IndexIVFPQ,
    faiss.IndexIVFPQFastScan,
    faiss.IndexIVFRaBitQ,
)
_PRICED = (
    *FLAT,
    *_GRAPHS,
    *_LISTS,
    faiss.IndexScalarQuantizer,
    faiss.IndexPQ,
    faiss.IndexPQFastScan,
    faiss.IndexRaBitQ,
    faiss.MultiIndexQuantizer,
    faiss.IndexPreTransform,
    faiss.IndexRefine,
    faiss.IndexRefineFlat,
)
_TRANSFORMS = (
    faiss.LinearTransform,  # what OPQ is when it has been written and read
    faiss.PCAMatrix,
    faiss.RandomRotationMatrix,
    faiss.OPQMatrix,
    faiss.ITQTransform,
    faiss.NormalizationTransform,
    faiss.RemapDimensionsTransform,
)
_SCALED = (
    faiss.ScalarQuantizer.QT_8bit,
    faiss.ScalarQuantizer.QT_6bit,
    faiss.ScalarQuantizer.QT_4bit,
    faiss.ScalarQuantizer.QT_8bit_uniform,
    faiss.ScalarQuantizer.QT_4bit_uniform,
)
_UNSCALED = (
    faiss.ScalarQuantizer.QT_fp16,
    faiss.ScalarQuantizer.QT_bf16,
    faiss.ScalarQuantizer.QT_8bit_direct,
    faiss.ScalarQuantizer.QT_8bit_direct_signed,
)
_UNCOUNTED = {
    "IndexNSG": "FAISS does not count what a search in it visits; HNSW{M} is the graph it counts",
    "RaBitQFastScan": "FAISS does not count which entries it looks at twice; RaBitQ without fs is counted",
    "IndexLSH": "binary codes are not priced; RaBitQ has one bit a dimension",
}


def unwrap(index: Any) -> Any:
    """The concrete class behind a FAISS pointer.

    Raises:
        NotImplementedError: If the work of that class is not written down; it names the class and what to use.
    """
    concrete = faiss.downcast_index(index)
    name = type(concrete).__name__
    if type(concrete) not in _PRICED:
        raise _refusal(name)
    if type(concrete) in _LISTS:
        coarse = faiss.downcast_index(concrete.quantizer)
        if type(coarse) not in (*FLAT, faiss.MultiIndexQuantizer, faiss.IndexHNSWFlat):
            raise _refusal(f"{name} whose lists {type(coarse).__name__} chooses")
    if hasattr(concrete, "sq") and concrete.sq.qtype not in (*_SCALED, *_UNSCALED):
        raise _refusal(f"{name} of scalar quantizer {concrete.sq.qtype}")
    if hasattr(concrete, "rabitq") and concrete.rabitq.nb_bits > 1:
        raise NotImplementedError(
            f"the work of a FAISS {name} of {concrete.rabitq.nb_bits} bits is not known: "
            "FAISS does not count which entries it looks at twice; RaBitQ with one bit is counted"
        )
    return concrete


def _refusal(name: str) -> NotImplementedError:
    why = next((why for part, why in _UNCOUNTED.items() if part in name), None)
    if why is not None:
        return NotImplementedError(f"the work of a FAISS {name} is not known: {why}")
    return NotImplementedError(
        f"the work of a FAISS {name} is not known; use a factory of Flat, SQ, PQ, PQ fast-scan or RaBitQ, alone or as "
        "codes of IVF or IMI, or HNSW, with PCA, OPQ, ITQ, RR (rotation), Pad or L2norm in front and RFlat or "
        "Refine(SQ8) behind"
    )


def refuse_unpriced(index: Any) -> None:
    """Walk through everything an index is made of.

    Raises:
        NotImplementedError: If the work of any of it is not written down.
    """
    index = unwrap(index)
    if isinstance(index, faiss.IndexPreTransform):
        for i in range(index.chain.size()):
            step = faiss.downcast_VectorTransform(index.chain.at(i))
            if type(step) not in _TRANSFORMS:
                raise _refusal(type(step).__name__)
        refuse_unpriced(index.index)
    elif isinstance(index, faiss.IndexRefine):
        refuse_unpriced(index.base_index)
        behind = faiss.downcast_index(index.refine_index)
        if type(behind) not in (*FLAT, faiss.IndexScalarQuantizer):
            raise _refusal(f"IndexRefine by {type(behind).__name__}")
        unwrap(behind)
    elif isinstance(index, _LISTS):
        unwrap(index.quantizer)
    elif isinstance(index, _GRAPHS):
        unwrap(index.storage)


def core(index: Any) -> Any:
    """What is left of an index without what comes in front of it and behind."""
    index = unwrap(index)
    while isinstance(index, faiss.IndexPreTransform | faiss.IndexRefine):
        index = unwrap(index.index if isinstance(index, faiss.IndexPreTransform) else index.base_index)
    return index


def scaled(index: Any) -> bool:
    """Whether a scalar quantizer's codes must be scaled to be compared; half floats and plain bytes need not."""
    return index.sq.qtype in _SCALED


def product_quantizer(index: Any) -> bool:
    """Whether an index compares by the tables of a product quantizer."""
    return isinstance(
        index, faiss.IndexPQ | faiss.IndexPQFastScan | faiss.IndexIVFPQ | faiss.IndexIVFPQFastScan
    )


def fast_scan(index: Any) -> bool:
    """Whether an index adds up 4-bit codes' table entries as 8-bit integers."""
    return isinstance(index, faiss.IndexPQFastScan | faiss.IndexIVFPQFastScan)


def tables_by_product(index: Any) -> bool:
    """Whether the tables of all queries are one product of matrices: so from 16 dimensions a part up, but not in IVF.

    There only fast-scan makes them together.
    """
    together = not isinstance(index, faiss.IndexIVF) or fast_scan(index)
    return product_quantizer(index) and together and index.pq.dsub >= 16
