"""The daemon's methods as methods of the clients. Generated from its table: python docs/generate_client.py.

What they do is told by `rpc.discover`; how a request travels is the clients' affair.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Literal

# What does more than read: it is not asked a second time when the connection breaks.
ACTIONS = frozenset(
    {
        "start_module",
        "stop_module",
        "restart_module",
        "reload_module",
        "configure",
        "reload_daemon",
        "shutdown",
        "trigger_chaos",
        "abort_chaos",
        "scale_module",
        "trigger_healing",
        "unset_config",
        "reexec",
    }
)


class Methods:
    """`request` is the client's own; a parameter that is None is not sent."""

    def request(self, method: str, needed: dict[str, Any], **may: Any) -> Any:
        raise NotImplementedError

    def get_status(self, module_id: str | None = None) -> dict[str, Any]:
        """The daemon with all modules, or one module."""
        result: dict[str, Any] = self.request("get_status", {}, module_id=module_id)
        return result

    def check_liveness(self) -> dict[str, Any]:
        """Whether the daemon lives."""
        result: dict[str, Any] = self.request("check_liveness", {})
        return result

    def check_readiness(self) -> dict[str, Any]:
        """Whether the modules can do their work."""
        result: dict[str, Any] = self.request("check_readiness", {})
        return result

    def check_critical_modules(self) -> dict[str, Any]:
        """Whether every critical module is healthy."""
        result: dict[str, Any] = self.request("check_critical_modules", {})
        return result

    def start_module(
        self, module_id: str, *, wait: bool = True, timeout: float | None = None
    ) -> dict[str, Any]:
        """Start a module and what it requires."""
        result: dict[str, Any] = self.request(
            "start_module", {"module_id": module_id}, wait=wait, timeout=timeout
        )
        return result

    def stop_module(
        self, module_id: str, *, cascade: bool = False, wait: bool = True, timeout: float | None = None
    ) -> dict[str, Any]:
        """Stop a module."""
        result: dict[str, Any] = self.request(
            "stop_module", {"module_id": module_id}, cascade=cascade, wait=wait, timeout=timeout
        )
        return result

    def restart_module(
        self, module_id: str, *, replica: int | None = None, wait: bool = True, timeout: float | None = None
    ) -> dict[str, Any]:
        """Stop a module, or one replica of it, and start it again."""
        result: dict[str, Any] = self.request(
            "restart_module", {"module_id": module_id}, replica=replica, wait=wait, timeout=timeout
        )
        return result

    def reload_module(
        self,
        module_id: str,
        *,
        strategy: Literal["graceful", "immediate", "rolling", "signal"] | None = None,
        wait: bool = True,
        timeout: float | None = None,
    ) -> dict[str, Any]:
        """Put the code on disk in force."""
        result: dict[str, Any] = self.request(
            "reload_module", {"module_id": module_id}, strategy=strategy, wait=wait, timeout=timeout
        )
        return result

    def configure(self, module_id: str, key: str, value: Any) -> dict[str, Any]:
        """Set a configuration value."""
        result: dict[str, Any] = self.request(
            "configure", {"module_id": module_id, "key": key, "value": value}
        )
        return result

    def get_config(self, module_id: str, *, key: str | None = None) -> dict[str, Any]:
        """A module's configuration."""
        result: dict[str, Any] = self.request("get_config", {"module_id": module_id}, key=key)
        return result

    def get_logs(
        self, module_id: str, *, lines: int = 100, follow: bool = False, replica: int | None = None
    ) -> dict[str, Any]:
        """The last lines of a module, and those to come."""
        result: dict[str, Any] = self.request(
            "get_logs", {"module_id": module_id}, lines=lines, follow=follow, replica=replica
        )
        return result

    def subscribe_events(self, module_id: str | None = None, *, since: int | None = None) -> dict[str, Any]:
        """Events as they happen."""
        result: dict[str, Any] = self.request("subscribe_events", {}, module_id=module_id, since=since)
        return result

    def get_history(self, module_id: str | None = None, *, limit: int = 100) -> dict[str, Any]:
        """The last events."""
        result: dict[str, Any] = self.request("get_history", {}, module_id=module_id, limit=limit)
        return result

    def reload_daemon(self) -> dict[str, Any]:
        """Read manifests again."""
        result: dict[str, Any] = self.request("reload_daemon", {})
        return result

    def shutdown(self) -> dict[str, Any]:
        """Stop all modules and the daemon."""
        result: dict[str, Any] = self.request("shutdown", {})
        return result

    def whoami(self) -> dict[str, Any]:
        """Who the caller is and what it may do."""
        result: dict[str, Any] = self.request("whoami", {})
        return result

    def discover(self) -> dict[str, Any]:
        """This table as an OpenRPC document."""
        result: dict[str, Any] = self.request("rpc.discover", {})
        return result

    def get_audit(
        self, module_id: str | None = None, *, since: int = 0, limit: int = 100, follow: bool = False
    ) -> dict[str, Any]:
        """The last records of the audit log."""
        result: dict[str, Any] = self.request(
            "get_audit", {}, module_id=module_id, since=since, limit=limit, follow=follow
        )
        return result

    def verify_audit(self, anchors: dict[str, Any] | None = None) -> dict[str, Any]:
        """Whether the audit log is whole."""
        result: dict[str, Any] = self.request("verify_audit", {}, anchors=anchors)
        return result

    def trigger_chaos(
        self,
        experiment: str,
        module_id: str,
        *,
        replicas: int | str = 1,
        duration: float | str | None = None,
        seed: int | None = None,
        dry_run: bool = False,
        wait: bool = True,
        timeout: float | None = None,
    ) -> dict[str, Any]:
        """Disturb a module on purpose."""
        result: dict[str, Any] = self.request(
            "trigger_chaos",
            {"experiment": experiment, "module_id": module_id},
            replicas=replicas,
            duration=duration,
            seed=seed,
            dry_run=dry_run,
            wait=wait,
            timeout=timeout,
        )
        return result

    def abort_chaos(
        self, id: str | None = None, *, module_id: str | None = None, timeout: float | None = None
    ) -> dict[str, Any]:
        """Roll an experiment back at once."""
        result: dict[str, Any] = self.request("abort_chaos", {}, id=id, module_id=module_id, timeout=timeout)
        return result

    def list_chaos(self, module_id: str | None = None, *, limit: int = 50) -> dict[str, Any]:
        """The last experiments, oldest first."""
        result: dict[str, Any] = self.request("list_chaos", {}, module_id=module_id, limit=limit)
        return result

    def get_chaos(self, id: str, *, wait: bool = False, timeout: float | None = None) -> dict[str, Any]:
        """The report of one experiment."""
        result: dict[str, Any] = self.request("get_chaos", {"id": id}, wait=wait, timeout=timeout)
        return result

    def scale_module(
        self, module_id: str, replicas: int, *, wait: bool = True, timeout: float | None = None
    ) -> dict[str, Any]:
        """Set the number of replicas."""
        result: dict[str, Any] = self.request(
            "scale_module", {"module_id": module_id, "replicas": replicas}, wait=wait, timeout=timeout
        )
        return result

    def trigger_healing(
        self, module_id: str | None = None, *, wait: bool = True, timeout: float | None = None
    ) -> dict[str, Any]:
        """Start anew what is failed or unhealthy, and is to run."""
        result: dict[str, Any] = self.request(
            "trigger_healing", {}, module_id=module_id, wait=wait, timeout=timeout
        )
        return result

    def unset_config(self, module_id: str, key: str) -> dict[str, Any]:
        """Take a configuration value back to the manifest's default."""
        result: dict[str, Any] = self.request("unset_config", {"module_id": module_id, "key": key})
        return result

    def reexec(self, force: bool = False, *, timeout: float | None = None) -> dict[str, Any]:
        """Replace nexusd by the installed one, modules untouched."""
        result: dict[str, Any] = self.request("reexec", {}, force=force, timeout=timeout)
        return result

    def get_metrics(self, module_id: str | None = None) -> dict[str, Any]:
        """Metrics in Prometheus's text format, of all or of one module."""
        result: dict[str, Any] = self.request("get_metrics", {}, module_id=module_id)
        return result


class AsyncMethods:
    """`request` is the client's own; a parameter that is None is not sent."""

    async def request(self, method: str, needed: dict[str, Any], **may: Any) -> Any:
        raise NotImplementedError

    async def get_status(self, module_id: str | None = None) -> dict[str, Any]:
        """The daemon with all modules, or one module."""
        result: dict[str, Any] = await self.request("get_status", {}, module_id=module_id)
        return result

    async def check_liveness(self) -> dict[str, Any]:
        """Whether the daemon lives."""
        result: dict[str, Any] = await self.request("check_liveness", {})
        return result

    async def check_readiness(self) -> dict[str, Any]:
        """Whether the modules can do their work."""
        result: dict[str, Any] = await self.request("check_readiness", {})
        return result

    async def check_critical_modules(self) -> dict[str, Any]:
        """Whether every critical module is healthy."""
        result: dict[str, Any] = await self.request("check_critical_modules", {})
        return result

    async def start_module(
        self, module_id: str, *, wait: bool = True, timeout: float | None = None
    ) -> dict[str, Any]:
        """Start a module and what it requires."""
        result: dict[str, Any] = await self.request(
            "start_module", {"module_id": module_id}, wait=wait, timeout=timeout
        )
        return result

    async def stop_module(
        self, module_id: str, *, cascade: bool = False, wait: bool = True, timeout: float | None = None
    ) -> dict[str, Any]:
        """Stop a module."""
        result: dict[str, Any] = await self.request(
            "stop_module", {"module_id": module_id}, cascade=cascade, wait=wait, timeout=timeout
        )
        return result

    async def restart_module(
        self, module_id: str, *, replica: int | None = None, wait: bool = True, timeout: float | None = None
    ) -> dict[str, Any]:
        """Stop a module, or one replica of it, and start it again."""
        result: dict[str, Any] = await self.request(
            "restart_module", {"module_id": module_id}, replica=replica, wait=wait, timeout=timeout
        )
        return result

    async def reload_module(
        self,
        module_id: str,
        *,
        strategy: Literal["graceful", "immediate", "rolling", "signal"] | None = None,
        wait: bool = True,
        timeout: float | None = None,
    ) -> dict[str, Any]:
        """Put the code on disk in force."""
        result: dict[str, Any] = await self.request(
            "reload_module", {"module_id": module_id}, strategy=strategy, wait=wait, timeout=timeout
        )
        return result

    async def configure(self, module_id: str, key: str, value: Any) -> dict[str, Any]:
        """Set a configuration value."""
        result: dict[str, Any] = await self.request(
            "configure", {"module_id": module_id, "key": key, "value": value}
        )
        return result

    async def get_config(self, module_id: str, *, key: str | None = None) -> dict[str, Any]:
        """A module's configuration."""
        result: dict[str, Any] = await self.request("get_config", {"module_id": module_id}, key=key)
        return result

    async def get_logs(
        self, module_id: str, *, lines: int = 100, follow: bool = False, replica: int | None = None
    ) -> dict[str, Any]:
        """The last lines of a module, and those to come."""
        result: dict[str, Any] = await self.request(
            "get_logs", {"module_id": module_id}, lines=lines, follow=follow, replica=replica
        )
        return result

    async def subscribe_events(
        self, module_id: str | None = None, *, since: int | None = None
    ) -> dict[str, Any]:
        """Events as they happen."""
        result: dict[str, Any] = await self.request("subscribe_events", {}, module_id=module_id, since=since)
        return result

    async def get_history(self, module_id: str | None = None, *, limit: int = 100) -> dict[str, Any]:
        """The last events."""
        result: dict[str, Any] = await self.request("get_history", {}, module_id=module_id, limit=limit)
        return result

    async def reload_daemon(self) -> dict[str, Any]:
        """Read manifests again."""
        result: dict[str, Any] = await self.request("reload_daemon", {})
        return result

    async def shutdown(self) -> dict[str, Any]:
        """Stop all modules and the daemon."""
        result: dict[str, Any] = await self.request("shutdown", {})
        return result

    async def whoami(self) -> dict[str, Any]:
        """Who the caller is and what it may do."""
        result: dict[str, Any] = await self.request("whoami", {})
        return result

    async def discover(self) -> dict[str, Any]:
        """This table as an OpenRPC document."""
        result: dict[str, Any] = await self.request("rpc.discover", {})
        return result

    async def get_audit(
        self, module_id: str | None = None, *, since: int = 0, limit: int = 100, follow: bool = False
    ) -> dict[str, Any]:
        """The last records of the audit log."""
        result: dict[str, Any] = await self.request(
            "get_audit", {}, module_id=module_id, since=since, limit=limit, follow=follow
        )
        return result

    async def verify_audit(self, anchors: dict[str, Any] | None = None) -> dict[str, Any]:
        """Whether the audit log is whole."""
        result: dict[str, Any] = await self.request("verify_audit", {}, anchors=anchors)
        return result

    async def trigger_chaos(
        self,
        experiment: str,
        module_id: str,
        *,
        replicas: int | str = 1,
        duration: float | str | None = None,
        seed: int | None = None,
        dry_run: bool = False,
        wait: bool = True,
        timeout: float | None = None,
    ) -> dict[str, Any]:
        """Disturb a module on purpose."""
        result: dict[str, Any] = await self.request(
            "trigger_chaos",
            {"experiment": experiment, "module_id": module_id},
            replicas=replicas,
            duration=duration,
            seed=seed,
            dry_run=dry_run,
            wait=wait,
            timeout=timeout,
        )
        return result

    async def abort_chaos(
        self, id: str | None = None, *, module_id: str | None = None, timeout: float | None = None
    ) -> dict[str, Any]:
        """Roll an experiment back at once."""
        result: dict[str, Any] = await self.request(
            "abort_chaos", {}, id=id, module_id=module_id, timeout=timeout
        )
        return result

    async def list_chaos(self, module_id: str | None = None, *, limit: int = 50) -> dict[str, Any]:
        """The last experiments, oldest first."""
        result: dict[str, Any] = await self.request("list_chaos", {}, module_id=module_id, limit=limit)
        return result

    async def get_chaos(self, id: str, *, wait: bool = False, timeout: float | None = None) -> dict[str, Any]:
        """The report of one experiment."""
        result: dict[str, Any] = await self.request("get_chaos", {"id": id}, wait=wait, timeout=timeout)
        return result

    async def scale_module(
        self, module_id: str, replicas: int, *, wait: bool = True, timeout: float | None = None
    ) -> dict[str, Any]:
        """Set the number of replicas."""
        result: dict[str, Any] = await self.request(
            "scale_module", {"module_id": module_id, "replicas": replicas}, wait=wait, timeout=timeout
        )
        return result

    async def trigger_healing(
        self, module_id: str | None = None, *, wait: bool = True, timeout: float | None = None
    ) -> dict[str, Any]:
        """Start anew what is failed or unhealthy, and is to run."""
        result: dict[str, Any] = await self.request(
            "trigger_healing", {}, module_id=module_id, wait=wait, timeout=timeout
        )
        return result

    async def unset_config(self, module_id: str, key: str) -> dict[str, Any]:
        """Take a configuration value back to the manifest's default."""
        result: dict[str, Any] = await self.request("unset_config", {"module_id": module_id, "key": key})
        return result

    async def reexec(self, force: bool = False, *, timeout: float | None = None) -> dict[str, Any]:
        """Replace nexusd by the installed one, modules untouched."""
        result: dict[str, Any] = await self.request("reexec", {}, force=force, timeout=timeout)
        return result

    async def get_metrics(self, module_id: str | None = None) -> dict[str, Any]:
        """Metrics in Prometheus's text format, of all or of one module."""
        result: dict[str, Any] = await self.request("get_metrics", {}, module_id=module_id)
        return result
