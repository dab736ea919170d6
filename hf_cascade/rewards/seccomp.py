"""System calls that a sandboxed program is refused, as a seccomp filter (every choice ours: paper silent).

Namespaces and limits do the isolation. The filter closes what they leave open: memory that belongs to no process
(`memfd_create`, System V shared memory), sockets that know no network namespace (VSOCK reaches a virtual machine's
host) and kernel interfaces that a Python program does not need.
"""

import platform
import struct

# Name -> number on x86_64 and on aarch64, from the kernel's asm/unistd.h.
REFUSED = {
    "shmget": (29, 194),
    "shmat": (30, 196),
    "ptrace": (101, 117),
    "syslog": (103, 116),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "unshare": (272, 97),
    "perf_event_open": (298, 241),
    "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265),
    "setns": (308, 268),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "memfd_create": (319, 279),
    "bpf": (321, 280),
    "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "fsopen": (430, 430),
    "fsmount": (432, 432),
    "memfd_secret": (447, 447),
}
SOCKET = (41, 198)
FAMILIES = (1, 2, 10)  # of sockets that are allowed: UNIX, INET, INET6
MACHINES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}  # column, AUDIT_ARCH
X32 = 0x40000000  # x86_64's second table of calls
LOAD, EQUAL, AT_LEAST, RETURN = 0x20, 0x15, 0x35, 0x06  # classic BPF, linux/filter.h
ALLOW, EPERM, KILL = 0x7FFF0000, 0x00050001, 0x80000000


def build_filter(machine: str = "") -> bytes:
    """
    The filter as `struct sock_filter[]`, for `bwrap --seccomp`: a refused call returns EPERM.

    Args:
        machine (`str`, *optional*): as `platform.machine()` says it, which is the default.

    Raises:
        ValueError: the machine is neither x86_64 nor aarch64.
    """
    machine = machine or platform.machine()
    if machine not in MACHINES:
        raise ValueError(f"the sandbox knows the system calls of {', '.join(MACHINES)}, not of {machine}")
    column, architecture = MACHINES[machine]
    refused = [(EQUAL, number) for number in (row[column] for row in REFUSED.values())]
    refused += [(AT_LEAST, X32)]
    steps = [(LOAD, 0, 0, 4), (EQUAL, 1, 0, architecture), (RETURN, 0, 0, KILL), (LOAD, 0, 0, 0)]
    # Behind the comparisons: is it socket(), its family, the allowed families; ALLOW; EPERM. A step jumps forward only.
    behind = len(FAMILIES) + 3
    steps += [(test, len(refused) - place - 1 + behind, 0, number) for place, (test, number) in enumerate(refused)]
    steps += [(EQUAL, 0, len(FAMILIES) + 1, SOCKET[column]), (LOAD, 0, 0, 16)]
    steps += [(EQUAL, len(FAMILIES) - place - 1, 0, family) for place, family in enumerate(FAMILIES[:-1])]
    steps += [(EQUAL, 0, 1, FAMILIES[-1]), (RETURN, 0, 0, ALLOW), (RETURN, 0, 0, EPERM)]
    return b"".join(struct.pack("<HBBI", *step) for step in steps)
