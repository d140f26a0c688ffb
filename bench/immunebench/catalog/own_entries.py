"""The suite's own entries, by a digest of their code: whatever is not listed here is a stranger's.

The list is code of the package: who changes an entry changes the list with it, and a person reads both. A folder of the
same name elsewhere, or in a checkout with other bytes, is a stranger's.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping

OWN: Mapping[str, str] = {
    "d16c8bba7c9ed5d439a3f7d25b632a4cff29935448af3bf43b8a2b61cfee2f49": "adaptive-wide",
    "5a1477e3c55d8c79579ce017d4d8baf1a037bdb25dac4070c6391b5fd36fffc5": "anti-dreambooth",
    "bc54c99c1659d43b5940a863db889ab2a4798d9f48a00a972467eecaa63e08ba": "apdm-paper",
    "c904d664451231e2da386d36386c82d3be711058ce6799f2a8994421ff9672bb": "blank",
    "30159b7ed150a25f845722157083beb330672f6e181c2a362a1998c9ce7a05d3": "concept-ablation",
    "863b971a3c29e3c7c1542b948777e0f2d5c093c356f0f0100e5d2f8fa26bc4a0": "destroy",
    "be473ae75ff0ab4c76ddd3558c58338654692a1aef62c4aecf9e1c9c49cc21e9": "diffpure",
    "15a4d85f9b03e65b0d543c06de003d72582138bb9443ef0ed60b5db429acbc8d": "dreambooth",
    "e45d933fde12e12fb93138654e97e9c1b4e16abfaa735a092fd03e406ec877b4": "esd",
    "082f255517d7f210a41190d4cd69fa5d965d98ab1edf21ca9b7ab5ec5fa4c49f": "freeze-as-guard",
    "57949d912f2f6925151504ff657f6012d78a77806d97c7b9acf6e9d840674b55": "gaussian",
    "5538f54b69ddbc53d33aaff5ecdaacf7573f34e48aeb28c6e1630449669578b4": "gaussian-denoise",
    "b770abf5253a761a7c3201a281660122561c8ba771840966af4248a832d1393c": "glaze-open",
    "e1f72fdf68f9d10149e56a37df5fbdc8d72ed384cfd9ab74e18e9c327d31dca9": "imma-lora",
    "e74ad0615ce7075e4e180c7c478c788127de53afe84339ef0d1751c8bf4abafc": "impress",
    "6f072d955b2f5e84ab0bdddcc67408fd8f5ee6451e96ba79f124b0e56c2224ea": "impress-pp",
    "4c16524dee73e143dfed41df8f4e0bd01a18fb7ea410e1fb5e7141e07fa2e614": "jpeg",
    "9c1deaca3d059821e482d94388fc9ec81b36c1895da3ed775cd55a1bed30c305": "lora",
    "a8a7a6da53ee39da6ded3fcba588cd48ab003f29249fc68df360b1c0433ad8ac": "lora-tuned",
    "527464b013218648862319bd83f5e3cf5eaf9a4592feb781e19eaf631c2165f0": "metacloak",
    "349ebeb345ba0e352995e2ca83ee14db35156d50f0a030ecc6bf93bce9686717": "mist",
    "dd00d951f1ca93cd3c568e400c051a161b0bc61e10a7d60bf971c1b28ffb7d6e": "noise",
    "adb8cbdf930dfb943f055146c2c139e7ae58641961f596c3480dcf17da375662": "noisy-upscale",
    "11c2b94440cd67fedafa63bcc05087705c9b0502f49e5f28c05d7a5006bd64de": "quantise",
    "8afcc8b6c483eaa86fe4fb4dd014eaf0558ed255001176c246522fe7480db044": "random-freeze",
    "e84303c86b3d12a25fb8178c70130a955702d90b890b0efc58532aa5ec15a9f3": "resize",
    "c7a0ab4f7c78b72a7b075ee653f98a77a70728196a1071d5ffee231bcd6034e1": "restyle",
    "c70f112cb8a9b1aeeefb8c1b711e949cae9b32ca4e97278b6efee6ee2be55c68": "simac",
    "40d3c473a6b59cd583d47ebea1aa5229599b1ec73b00541d738a8d9d9619c4bd": "textual-inversion",
    "e7507139d793c89112633ff5ff81adb437b7ec2cb39d98d7b258ecc54a9c3b51": "tvm",
    "2dd2841dffdff4ab1f31b3442459f23db63eac0173869d19460ee5d412754fd9": "uce-paper",
}


def code_digest(files: Mapping[str, str]) -> str:
    """Return one digest of an entry's files, given their SHA-256 by name."""
    return hashlib.sha256(json.dumps(dict(sorted(files.items()))).encode()).hexdigest()


def is_own(files: Mapping[str, str]) -> bool:
    """Return whether files are those of an entry of the suite; no code at all is nobody's."""
    return not files or code_digest(files) in OWN
