"""Key/value caches, one layout per file."""

from nxdi.modules.kvcache.contiguous import ContiguousCache
from nxdi.modules.kvcache.paged import PagedCache
from nxdi.modules.kvcache.spec import KVCacheLayout, layout_of
from nxdi.modules.kvcache.window import WindowCache

__all__ = ["ContiguousCache", "KVCacheLayout", "PagedCache", "WindowCache", "layout_of"]
