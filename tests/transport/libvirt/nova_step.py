# mypy: ignore-errors
# ruff: noqa: E402 - nova wants to be told how it is to run before anything of it is imported
"""One step of a live migration by nova's libvirt driver, on the host where nova's compute service would do it.

    NOVA'S-PYTHON nova_step.py STEP NOVA.CONF STATE(JSON)

The driver, its guest, its XML, its checks, its monitor are nova's. What stands around it in a cloud is not: the
database is an empty one in a file, the image is copied, there is no neutron, and what one service would send to the
other by its message bus is in STATE, in nova's own form. The order of the steps is that of nova's compute manager.
It runs in nova's environment, not in ours, so nothing of nova's is typed here.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import traceback
from pathlib import Path
from typing import Any

os.environ["OS_NOVA_DISABLE_EVENTLET_PATCHING"] = "true"
from nova import monkey_patch

monkey_patch.patch("threading")
import nova.conf
import nova.conf.devices
import nova.conf.neutron
import nova.privsep
from nova import config, context, objects
from nova.db.main import api as database
from nova.db.main import models
from nova.network import model as network
from nova.objects.base import NovaObject
from nova.tests.unit import fake_instance
from nova.virt import fake
from nova.virt.libvirt import driver as libvirt_driver
from nova.virt.libvirt import utils as libvirt_utils

NO_VOLUMES = {
    "root_device_name": "/dev/vda", "ephemerals": [], "swap": None, "block_device_mapping": [], "image": [],
}  # fmt: skip
NO_NETWORK = network.NetworkInfo([])


class Step:
    def __init__(self, state_path: Path) -> None:
        self.state_path = state_path
        self.state: dict[str, Any] = json.loads(state_path.read_text())
        self.context = context.get_admin_context()
        self.driver = libvirt_driver.LibvirtDriver(fake.FakeVirtAPI())
        self.driver._set_host_enabled = lambda *_, **__: None  # it would tell the scheduler
        self.driver._network_api.has_port_binding_extension = lambda _: False
        libvirt_utils.fetch_image = lambda target, **_: shutil.copyfile(self.state["image"], target)
        self.driver.init_host(nova.conf.CONF.host)
        self.instance = self._instance()

    def spawn(self) -> None:
        self.driver.spawn(
            self.context, self.instance, self.instance.image_meta, [], None, {},
            network_info=NO_NETWORK, block_device_info=NO_VOLUMES,
        )  # fmt: skip
        self.keep(source=self._resources())

    def check_destination(self) -> None:
        data = self.driver.check_can_live_migrate_destination(
            self.context, self.instance, self.state["source"], self._resources(), True, False
        )
        data.is_volume_backed = False
        self.keep_data(data)

    def check_source(self) -> None:
        data = self.driver.check_can_live_migrate_source(self.context, self.instance, self.data(), NO_VOLUMES)
        self.keep_data(data)
        self.keep(disks=self.driver.get_instance_disk_info(self.instance, block_device_info=NO_VOLUMES))

    def prepare(self) -> None:
        self.driver.cleanup_live_migration_destination_check(self.context, self.data())
        disks = self.state["disks"]
        self.keep_data(
            self.driver.pre_live_migration(self.context, self.instance, NO_VOLUMES, NO_NETWORK, disks, self.data())
        )

    def migrate(self) -> None:
        data = self.data()
        data.migration = objects.Migration(self.context, id=1, status="running", instance_uuid=self.instance.uuid)
        called: list[str] = []
        try:
            self.driver.live_migration(
                self.context, self.instance, "host-b",
                lambda *_, **__: called.append("post"), lambda *_, **__: called.append("recover"), True, data,
            )  # fmt: skip
        finally:
            self.keep(called=called)

    def finish_source(self) -> None:
        self.driver.post_live_migration(self.context, self.instance, NO_VOLUMES, self.data())
        self.driver.post_live_migration_at_source(self.context, self.instance, NO_NETWORK)

    def finish_destination(self) -> None:
        self.driver.post_live_migration_at_destination(self.context, self.instance, NO_NETWORK, True, NO_VOLUMES)
        guest = self.driver._host.get_guest(self.instance)
        self.keep(is_running=guest.get_power_state(self.driver._host) == 1, xml=guest.get_xml_desc())

    def keep(self, **more: Any) -> None:
        self.state.update(more)
        self.state_path.write_text(json.dumps(self.state))

    def keep_data(self, data: Any) -> None:
        self.keep(data=data.obj_to_primitive())

    def data(self) -> Any:
        return NovaObject.obj_from_primitive(self.state["data"])

    def _resources(self) -> dict[str, Any]:
        found = self.driver.get_available_resource(nova.conf.CONF.host)
        return {name: found[name] for name in ("cpu_info", "disk_available_least")} | {
            "free_disk_gb": found["local_gb"]
        }

    def _instance(self) -> Any:
        flavor = objects.Flavor(
            id=1, name="tiny", memory_mb=64, vcpus=1, root_gb=0, ephemeral_gb=0, flavorid="1", swap=0, rxtx_factor=1.0,
            vcpu_weight=0, disabled=False, is_public=True, extra_specs={}, projects=[],
        )  # fmt: skip
        image = {"disk_format": "raw", "container_format": "bare", "min_disk": "0", "hw_machine_type": "pc"}
        made = fake_instance.fake_instance_obj(
            self.context, id=1, uuid=self.state["uuid"], flavor=flavor, image_ref=self.state["image_id"],
            host="host-a", node="host-a", vm_state="active", hostname="web", display_name="web",
            system_metadata={f"image_{name}": value for name, value in image.items()},
            expected_attrs=[
                "system_metadata", "metadata", "numa_topology", "pci_devices", "info_cache", "device_metadata",
                "trusted_certs", "vcpu_model", "pci_requests", "resources",
            ],
        )  # fmt: skip
        made.info_cache = objects.InstanceInfoCache(network_info=NO_NETWORK, instance_uuid=made.uuid)
        return made


def main(step: str, conf: str, state: str) -> None:
    config.parse_args(["nova", "--config-file", conf])
    nova.conf.neutron.register_dynamic_opts(nova.conf.CONF)
    nova.conf.devices.register_dynamic_opts(nova.conf.CONF)
    nova.privsep.sys_admin_pctxt.set_client_mode(False)  # we are root: no helper process
    objects.register_all()
    database.configure(nova.conf.CONF)
    models.BASE.metadata.create_all(database.get_engine())
    for kind in (objects.Instance, objects.Migration):  # of which the database has no row
        kind.save = lambda self, *_, **__: self.obj_reset_changes()
    getattr(Step(Path(state)), step)()


if __name__ == "__main__":
    code = 0
    try:
        main(*sys.argv[1:])
    except Exception:  # noqa: BLE001 - whatever it is, nova's words are what the test reads
        traceback.print_exc()
        code = 1
    sys.stderr.flush()
    os._exit(code)  # the driver's threads wait for events of libvirt for ever
