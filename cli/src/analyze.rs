//! `culvert analyze`: what is wrong with a folder.

use std::{collections::BTreeMap, fmt::Write};

use control::finding::{Finding, Severity};
use serde_json::json;

use crate::{
    args::{Analyze, FailOn},
    exit::{Exit, Failure},
    offline::{self, readable},
    style::Style,
};

/// Code of the finding for a file that cannot be read.
const UNREADABLE: &str = "unreadable";

/// Analyzes a folder: exit status and text.
///
/// # Errors
/// The folder cannot be read, or there is nothing in it: checking nothing is not "no errors".
pub fn run(options: &Analyze, as_json: bool, style: Style) -> Result<(Exit, String), Failure> {
    let files = readable(&options.folder)?;
    let findings = offline::findings(&options.folder, &options.settings);
    let exit = exit(&findings, options.fail_on);
    let text = if as_json { as_value(&findings, files) } else { render(&findings, files, style) };
    Ok((exit, text))
}

/// The exit status that findings call for.
pub fn exit(findings: &[Finding], fail_on: FailOn) -> Exit {
    let fails = |f: &Finding| match f.severity {
        Severity::Error => true,
        Severity::Warning => fail_on == FailOn::Warning,
        Severity::Info => false,
    };
    match findings.iter().any(|f| f.code == UNREADABLE) {
        true => Exit::NoAnswer,
        false => Exit::well_if(!findings.iter().any(fails)),
    }
}

fn count(findings: &[Finding], severity: Severity) -> usize {
    findings.iter().filter(|f| f.severity == severity).count()
}

fn as_value(findings: &[Finding], files: usize) -> String {
    let value = json!({
        "files": files,
        "errors": count(findings, Severity::Error),
        "warnings": count(findings, Severity::Warning),
        "infos": count(findings, Severity::Info),
        "findings": findings,
    });
    format!("{value:#}\n")
}

/// Findings by file, then one line that counts them.
pub fn render(findings: &[Finding], files: usize, style: Style) -> String {
    let mut by_file: BTreeMap<&str, Vec<&Finding>> = BTreeMap::new();
    for finding in findings {
        by_file.entry(&finding.file).or_default().push(finding);
    }
    let mut out = String::new();
    for (file, list) in by_file {
        let _ = writeln!(out, "{}", style.bold(file));
        list.iter().for_each(|f| one(&mut out, f, style));
        out.push('\n');
    }
    out.push_str(&summary(findings, files, style));
    out
}

fn one(out: &mut String, finding: &Finding, style: Style) {
    let severity = format!("{:<7}", finding.severity.to_string());
    let severity = match finding.severity {
        Severity::Error => style.bad(&severity),
        Severity::Warning => style.doubtful(&severity),
        Severity::Info => style.faint(&severity),
    };
    let place = format!("{}:{}", finding.file, finding.line);
    let subject = match (finding.object.is_empty(), finding.field.is_empty()) {
        (true, true) => "document".to_owned(),
        (true, false) => finding.field.clone(),
        (false, true) => finding.object.clone(),
        (false, false) => format!("{}: {}", finding.object.trim(), finding.field),
    };
    let code = style.faint(&format!("[{}]", finding.code));
    let _ = writeln!(out, "  {severity} {place}  {}", style.bold(&subject));
    let _ = writeln!(out, "          {} {code}", finding.reason);
    let _ = writeln!(out, "          {} {}", style.faint("remedy:"), finding.remedy);
}

fn summary(findings: &[Finding], files: usize, style: Style) -> String {
    let [errors, warnings, infos] =
        [Severity::Error, Severity::Warning, Severity::Info].map(|s| count(findings, s));
    let counted = format!(
        "{}, {} and {infos} info in {}",
        many(errors, "error"),
        many(warnings, "warning"),
        many(files, "file")
    );
    let shown = match (errors, warnings) {
        (0, 0) => style.good(&counted),
        (0, _) => style.doubtful(&counted),
        _ => style.bad(&counted),
    };
    format!("{shown}\n")
}

fn many(count: usize, noun: &str) -> String {
    if count == 1 { format!("1 {noun}") } else { format!("{count} {noun}s") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn finding(severity: Severity, code: &'static str) -> Finding {
        Finding {
            file: "a.yaml".into(),
            line: 7,
            object: "Service default/web".into(),
            field: "spec.ports[0].port".into(),
            severity,
            code,
            reason: "70000 is no port".into(),
            remedy: "use 1 to 65535".into(),
        }
    }

    #[test]
    fn the_exit_status_follows_the_worst_finding() {
        let [error, warning, info] =
            [Severity::Error, Severity::Warning, Severity::Info].map(|s| finding(s, "code"));
        let of = |f: &Finding, fail_on| exit(std::slice::from_ref(f), fail_on);
        assert_eq!(of(&error, FailOn::Error), Exit::NotWell);
        assert_eq!(of(&warning, FailOn::Error), Exit::Well);
        assert_eq!(of(&warning, FailOn::Warning), Exit::NotWell);
        assert_eq!(of(&info, FailOn::Warning), Exit::Well);
        assert_eq!(of(&finding(Severity::Error, UNREADABLE), FailOn::Error), Exit::NoAnswer);
    }

    #[test]
    fn a_finding_shows_place_object_field_reason_and_remedy_and_colours_only_when_asked() {
        let findings = [finding(Severity::Error, "bad-port")];
        let plain = render(&findings, 1, Style::new(false));
        for part in
            ["a.yaml:7", "Service default/web: spec.ports[0].port", "70000 is no port [bad-port]", "use 1 to"]
        {
            assert!(plain.contains(part), "{plain}");
        }
        assert!(plain.ends_with("1 error, 0 warnings and 0 info in 1 file\n"), "{plain}");
        assert!(!plain.contains('\x1b') && render(&findings, 1, Style::new(true)).contains("\x1b[1;31m"));
    }
}
