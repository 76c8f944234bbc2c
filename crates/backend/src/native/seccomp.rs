//! The system call filter of every box: what Docker's default refuses, as a list of refusals with a ceiling, so
//! that system calls younger than this list are refused too (ENOSYS, as an old kernel would).

use std::collections::BTreeMap;

use dispense_spawner::Instruction;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule, TargetArch,
};

use crate::BackendError;

/// Refused whatever the arguments: they reach the kernel or the machine rather than the box, or only widen what
/// can be attacked.
const REFUSED: &[libc::c_long] = &[
    libc::SYS_acct,
    libc::SYS_add_key,
    libc::SYS_bpf,
    libc::SYS_clock_adjtime,
    libc::SYS_clock_settime,
    libc::SYS_delete_module,
    libc::SYS_fanotify_init,
    libc::SYS_finit_module,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fsopen,
    libc::SYS_fspick,
    libc::SYS_init_module,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_io_uring_setup,
    libc::SYS_kcmp,
    libc::SYS_kexec_file_load,
    libc::SYS_kexec_load,
    libc::SYS_keyctl,
    libc::SYS_lookup_dcookie,
    libc::SYS_mount,
    libc::SYS_mount_setattr,
    libc::SYS_move_mount,
    libc::SYS_move_pages,
    libc::SYS_name_to_handle_at,
    libc::SYS_nfsservctl,
    libc::SYS_open_by_handle_at,
    libc::SYS_open_tree,
    libc::SYS_perf_event_open,
    libc::SYS_pivot_root,
    libc::SYS_quotactl,
    libc::SYS_quotactl_fd,
    libc::SYS_reboot,
    libc::SYS_request_key,
    libc::SYS_setdomainname,
    libc::SYS_sethostname,
    libc::SYS_setns,
    libc::SYS_settimeofday,
    libc::SYS_swapoff,
    libc::SYS_swapon,
    libc::SYS_syslog,
    libc::SYS_umount2,
    libc::SYS_userfaultfd,
    libc::SYS_vhangup,
];
/// Calls of this processor only. Three that no kernel serves any more have no name in `libc`.
#[cfg(target_arch = "x86_64")]
const REFUSED_HERE: &[libc::c_long] = &[
    174, // create_module
    177, // get_kernel_syms
    178, // query_module
    libc::SYS_uselib,
    libc::SYS_ustat,
    libc::SYS_sysfs,
    libc::SYS__sysctl,
    libc::SYS_ioperm,
    libc::SYS_iopl,
    libc::SYS_modify_ldt,
];
#[cfg(not(target_arch = "x86_64"))]
const REFUSED_HERE: &[libc::c_long] = &[];

/// Namespaces that no process inside makes.
const NAMESPACES: [libc::c_int; 8] = [
    libc::CLONE_NEWUSER,
    libc::CLONE_NEWNS,
    libc::CLONE_NEWPID,
    libc::CLONE_NEWNET,
    libc::CLONE_NEWIPC,
    libc::CLONE_NEWUTS,
    libc::CLONE_NEWCGROUP,
    libc::CLONE_NEWTIME,
];
/// Socket families that reach the host or the kernel's cryptography.
const FAMILIES: [libc::c_int; 3] = [libc::AF_ALG, libc::AF_VSOCK, libc::AF_KEY];
/// Terminal requests that put characters into somebody else's input.
const TERMINAL_REQUESTS: [u64; 2] = [libc::TIOCSTI, libc::TIOCLINUX];
/// The youngest system call that this list has an opinion on (`mseal`).
const YOUNGEST: u32 = 462;

/// Compiles the filter. Once a runner, since a box only loads it.
pub(super) fn compile() -> Result<Vec<Instruction>, BackendError> {
    let failed = |error: seccompiler::BackendError| BackendError::failed("compile the system call filter", error);
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> =
        REFUSED.iter().chain(REFUSED_HERE).map(|call| (*call, Vec::new())).collect();
    let masked = |index, mask: u64| -> Result<SeccompRule, seccompiler::BackendError> {
        SeccompRule::new(vec![SeccompCondition::new(
            index,
            SeccompCmpArgLen::Qword,
            SeccompCmpOp::MaskedEq(mask),
            mask,
        )?])
    };
    for flag in NAMESPACES {
        let flag = u64::from(flag.unsigned_abs());
        rules.entry(libc::SYS_unshare).or_default().push(masked(0, flag).map_err(failed)?);
        // In `clone` the bits of CLONE_NEWTIME are those of the exit signal.
        if flag != u64::from(libc::CLONE_NEWTIME.unsigned_abs()) {
            rules.entry(libc::SYS_clone).or_default().push(masked(0, flag).map_err(failed)?);
        }
    }
    let equal = |index, value: u64| -> Result<SeccompRule, seccompiler::BackendError> {
        SeccompRule::new(vec![SeccompCondition::new(index, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, value)?])
    };
    for family in FAMILIES {
        rules.entry(libc::SYS_socket).or_default().push(equal(0, u64::from(family.unsigned_abs())).map_err(failed)?);
    }
    for request in TERMINAL_REQUESTS {
        rules.entry(libc::SYS_ioctl).or_default().push(equal(1, request).map_err(failed)?);
    }
    let arch = if cfg!(target_arch = "x86_64") { TargetArch::x86_64 } else { TargetArch::aarch64 };
    let refused = SeccompAction::Errno(libc::EPERM.unsigned_abs());
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, refused, arch).map_err(failed)?;
    let program: BpfProgram = filter.try_into().map_err(failed)?;
    let compiled = program.iter().map(|one| Instruction(one.code, one.jt, one.jf, one.k));
    Ok(preamble().into_iter().chain(compiled).collect())
}

/// Answers ENOSYS to clone3, whose flags a filter cannot see (programs then use clone), and to what is younger
/// than this list. Comes before the check of the architecture, and refuses only.
fn preamble() -> [Instruction; 4] {
    const LOAD_NUMBER: u16 = 0x20;
    const JUMP_EQUAL: u16 = 0x15;
    const JUMP_GREATER: u16 = 0x25;
    const RETURN: u16 = 0x06;
    let clone3 = u32::try_from(libc::SYS_clone3).unwrap_or(u32::MAX);
    [
        Instruction(LOAD_NUMBER, 0, 0, 0),
        Instruction(JUMP_EQUAL, 1, 0, clone3),
        Instruction(JUMP_GREATER, 0, 1, YOUNGEST),
        Instruction(RETURN, 0, 0, libc::SECCOMP_RET_ERRNO | libc::ENOSYS.unsigned_abs()),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_filter_compiles_within_the_kernels_bound() {
        let program = compile().expect("the rules are valid");
        assert!(program.len() > 50 && program.len() <= 4096, "{} instructions", program.len());
    }
}
