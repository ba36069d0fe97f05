//! Puts the kernel programs through this machine's kernel; the last line says whether all held.
//!
//! Prints `RESULT <step> OK|FAIL|SKIP <json>`. For a virtual machine that is thrown away: it makes
//! namespaces and attaches programs to a cgroup.

use std::process::ExitCode;

use verify_guest::{control, features, kernel_log, load, report::Report, smoke, world::World};

fn main() -> ExitCode {
    let mut report = Report::default();
    report.step("kernel", features::kernel);
    for program in load::programs() {
        report.step(&format!("load.{program}"), || load::one(&program));
        report.step(&format!("debug.{program}"), || load::one_that_logs(&program));
    }
    report.step("control.refused", control::refused);
    if let Some(world) = report.step_with("world", World::make)
        && let Some(bpf) = report.step_with("attach", || world.attach())
    {
        for (name, check) in smoke::CHECKS {
            report.step(&format!("smoke.{name}"), || check(&world, &bpf));
        }
        report.step("detach", || world.detach(bpf));
    }
    report.step("dmesg", kernel_log::scan);
    report.finish()
}
