"""Key/value caches, one layout per file."""

from nxdi.modules.kvcache.choice import choose_layout
from nxdi.modules.kvcache.chunked import ChunkedCache
from nxdi.modules.kvcache.contiguous import ContiguousCache
from nxdi.modules.kvcache.paged import PagedCache
from nxdi.modules.kvcache.rolling import RollingCache
from nxdi.modules.kvcache.spec import KVCacheLayout, layout_of
from nxdi.modules.kvcache.window import WindowCache

__all__ = [
    "ChunkedCache",
    "ContiguousCache",
    "KVCacheLayout",
    "PagedCache",
    "RollingCache",
    "WindowCache",
    "choose_layout",
    "layout_of",
]
