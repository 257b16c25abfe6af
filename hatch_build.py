"""Compiles the kernels while the package is built; without a C compiler the package is built without them."""

from __future__ import annotations

import importlib.util
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

ROOM = Path("src") / "dsee" / "kernels"


class KernelBuildHook(BuildHookInterface):  # type: ignore[type-arg] - hatchling's base is generic over its configuration
    """Hatchling calls it for each wheel, editable ones included."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile and add the library to the wheel.

        Args:
            version: "standard" or "editable".
            build_data: hatchling's; told of the file and of the wheel's platform.
        """
        if self.target_name != "wheel":
            return
        spec = importlib.util.spec_from_file_location("dsee_compile", Path(self.root) / ROOM / "compile.py")
        if spec is None or spec.loader is None:
            return
        build = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(build)
        folder = ROOM if version == "editable" else Path("build") / "kernels"
        target = Path(self.root) / folder / build.LIBRARY
        try:
            build.compile_kernels(target)
        except build.CompileError as error:
            self.app.display_warning(f"dsee is installed without its sparse kernels: {error}")
            return
        if version != "editable":
            build_data["force_include"][str(target)] = f"dsee/kernels/{build.LIBRARY}"
        # nothing in the library knows Python, so one wheel serves every version of it
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{sysconfig.get_platform().replace('-', '_').replace('.', '_')}"
