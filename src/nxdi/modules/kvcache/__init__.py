"""Key/value caches, one layout per file."""

from nxdi.modules.kvcache.contiguous import ContiguousCache
from nxdi.modules.kvcache.spec import KVCacheLayout
from nxdi.modules.kvcache.window import WindowCache

__all__ = ["ContiguousCache", "KVCacheLayout", "WindowCache"]
