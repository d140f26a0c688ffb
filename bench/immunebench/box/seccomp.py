"""A filter of system calls for computing processes: threads, files and memory, and nothing that reaches further.

It lists what is refused, since what torch and a GPU's driver need changes with their versions. Refused are new
processes and programs, sockets, namespaces and mounts, reading or signalling other processes, keys, kernel interfaces
with a history of holes (bpf, io_uring, userfaultfd, perf), and changes of the system. A refused call fails with EPERM,
so that the traceback names the line of the entry's code.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct

from immunebench.box import linux

# Numbers of (x86_64, aarch64); None where that machine has no such call.
_REFUSED: dict[str, tuple[int | None, int | None]] = {
    "fork": (57, None), "vfork": (58, None), "execve": (59, 221), "execveat": (322, 281),
    "socket": (41, 198), "socketpair": (53, 199), "connect": (42, 203), "bind": (49, 200), "listen": (50, 201),
    "accept": (43, 202), "accept4": (288, 242), "sendto": (44, 206), "sendmsg": (46, 211), "sendmmsg": (307, 269),
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "kcmp": (312, 272),
    "process_madvise": (440, 440), "migrate_pages": (256, 238), "move_pages": (279, 239),
    "pidfd_open": (434, 434), "pidfd_send_signal": (424, 424), "pidfd_getfd": (438, 438),
    "rt_sigqueueinfo": (129, 138), "rt_tgsigqueueinfo": (297, 240),
    "setpriority": (141, 140), "ioprio_set": (251, 30), "sched_setscheduler": (144, 119), "sched_setparam": (142, 118),
    "sched_setattr": (314, 274),
    "unshare": (272, 97), "setns": (308, 268), "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41),
    "chroot": (161, 51), "open_tree": (428, 428), "move_mount": (429, 429), "fsopen": (430, 430),
    "fsconfig": (431, 431), "fsmount": (432, 432), "fspick": (433, 433), "mount_setattr": (442, 442),
    "mknod": (133, None), "mknodat": (259, 33), "name_to_handle_at": (303, 264), "open_by_handle_at": (304, 265),
    "fanotify_init": (300, 262), "quotactl": (179, 60), "acct": (163, 89), "swapon": (167, 224), "swapoff": (168, 225),
    "bpf": (321, 280), "perf_event_open": (298, 241), "userfaultfd": (323, 282), "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426), "io_uring_register": (427, 427),
    "add_key": (248, 217), "request_key": (249, 218), "keyctl": (250, 219),
    "shmget": (29, 194), "shmat": (30, 196), "semget": (64, 190), "msgget": (68, 186), "mq_open": (240, 180),
    "personality": (135, 92), "init_module": (175, 105), "finit_module": (313, 273), "delete_module": (176, 106),
    "kexec_load": (246, 104), "kexec_file_load": (320, 294), "reboot": (169, 142), "syslog": (103, 116),
    "settimeofday": (164, 170), "clock_settime": (227, 112), "adjtimex": (159, 171), "clock_adjtime": (305, 266),
    "sethostname": (170, 161), "setdomainname": (171, 162), "iopl": (172, None), "ioperm": (173, None),
    "modify_ldt": (154, None), "vhangup": (153, 58), "lookup_dcookie": (212, 18), "uselib": (134, None),
}  # fmt: skip
#: Files of memory alone: neither a process's own memory nor its disk shows them. A GPU's driver may need them.
_UNSEEN: dict[str, tuple[int, int]] = {"memfd_create": (319, 279), "memfd_secret": (447, 447)}
_CLONE, _CLONE3 = {"x86_64": 56, "aarch64": 220}, 435
_KILL = {"x86_64": (62, 200, 234), "aarch64": (129, 130, 131)}  # kill, tkill, tgkill
_PRLIMIT, _AFFINITY = {"x86_64": 302, "aarch64": 261}, {"x86_64": 203, "aarch64": 122}
_PRCTL, _IOCTL = {"x86_64": 157, "aarch64": 167}, {"x86_64": 16, "aarch64": 29}
_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_CLONE_THREAD, _TIOCSTI, _TIOCLINUX, _X32 = 0x10000, 0x5412, 0x541C, 0x40000000

_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _ERRNO, _KILL_PROCESS = 0x7FFF0000, 0x00050000, 0x80000000
_NUMBER, _ARCHITECTURE, _ARGUMENTS = 0, 4, 16

Step = tuple[int, int, int, int]


def supported() -> bool:
    """Whether this machine is one that the filter has numbers for."""
    return linux.ON_LINUX and platform.machine() in _ARCH


def _compared(argument: int, code: int, value: int, *, refuse_match: bool) -> list[Step]:
    """Return steps that end with refusing or allowing the call by the low half of an argument."""
    refuse, allow = (_RETURN, 0, 0, _ERRNO | errno.EPERM), (_RETURN, 0, 0, _ALLOW)
    first, second = (refuse, allow) if refuse_match else (allow, refuse)
    return [(_LOAD, 0, 0, _ARGUMENTS + 8 * argument), (code, 0, 1, value), first, second]


def program(pid: int, machine: str, *, gpu: bool = False) -> list[Step]:
    """Return the filter as steps (code, jump if true, jump if false, value).

    Parameters
    ----------
    pid : int
        The only process that may be signalled: itself.
    machine : str
        `x86_64` or `aarch64`.
    gpu : bool
        Whether files of memory stay open.
    """
    refuse = (_RETURN, 0, 0, _ERRNO | errno.EPERM)
    steps: list[Step] = [
        (_LOAD, 0, 0, _ARCHITECTURE), (_EQUAL, 1, 0, _ARCH[machine]), (_RETURN, 0, 0, _KILL_PROCESS),
        (_LOAD, 0, 0, _NUMBER),
    ]  # fmt: skip
    if machine == "x86_64":  # Calls of the 32-bit interface have other numbers.
        steps += [(_AT_LEAST, 0, 1, _X32), (_RETURN, 0, 0, _KILL_PROCESS)]

    def on(number: int, then: list[Step]) -> None:
        steps.extend([(_EQUAL, 0, len(then), number), *then])

    index = 0 if machine == "x86_64" else 1
    for numbers in [*_REFUSED.values(), *(() if gpu else _UNSEEN.values())]:
        number = numbers[index]
        if number is not None:
            on(number, [refuse])
    # Its flags lie in memory, where no filter can look; the C library then uses the older call.
    on(_CLONE3, [(_RETURN, 0, 0, _ERRNO | errno.ENOSYS)])
    on(_CLONE[machine], _compared(0, _ANY_BIT, _CLONE_THREAD, refuse_match=False))
    kill, tkill, tgkill = _KILL[machine]
    on(kill, _compared(0, _EQUAL, pid, refuse_match=False))
    on(tkill, [refuse])
    on(tgkill, _compared(0, _EQUAL, pid, refuse_match=False))
    on(_PRLIMIT[machine], _compared(0, _EQUAL, 0, refuse_match=False))
    on(_AFFINITY[machine], _compared(0, _EQUAL, 0, refuse_match=False))
    on(_PRCTL[machine], _compared(0, _EQUAL, linux.PR_SET_PDEATHSIG, refuse_match=True))
    on(_IOCTL[machine], [
        (_LOAD, 0, 0, _ARGUMENTS + 8), (_EQUAL, 1, 0, _TIOCSTI), (_EQUAL, 0, 1, _TIOCLINUX), refuse,
        (_RETURN, 0, 0, _ALLOW),
    ])  # fmt: skip
    return [*steps, (_RETURN, 0, 0, _ALLOW)]


def install(*, gpu: bool = False) -> None:
    """Filter the calls of this process from now on, for good; it has one thread."""
    steps = program(os.getpid(), platform.machine(), gpu=gpu)
    packed = b"".join(struct.pack("HBBI", *step) for step in steps)
    memory = ctypes.create_string_buffer(packed, len(packed))

    class Filter(ctypes.Structure):
        _fields_ = (("length", ctypes.c_ushort), ("steps", ctypes.c_void_p))

    whole = Filter(len(steps), ctypes.addressof(memory))
    linux.prctl(linux.PR_SET_NO_NEW_PRIVS, 1)
    linux.prctl(linux.PR_SET_SECCOMP, 2, ctypes.byref(whole))
