//! `docs/features.md`: every test and every example that it names exists.

use std::{collections::BTreeSet, fs, path::Path};

use anyhow::{Context, Result};

const PAGE: &str = "docs/features.md";

/// Names on the page that nothing stands for.
pub fn check(root: &Path) -> Result<Vec<String>> {
    let page = fs::read_to_string(root.join(PAGE)).with_context(|| format!("cannot read {PAGE}"))?;
    let mut known = BTreeSet::new();
    collect(root, &mut known)?;
    let missing_test = |name: &&str| is_test_name(name) && !known.contains(*name);
    let missing_file = |name: &&str| name.starts_with("examples/") && !root.join(name).exists();
    let names: Vec<&str> = page.split('`').skip(1).step_by(2).collect();
    let tests = names.iter().filter(|name| missing_test(name));
    let files = names.iter().filter(|name| missing_file(name));
    let mut problems: Vec<String> =
        tests.map(|name| format!("{PAGE} names the test {name}, which does not exist")).collect();
    problems.extend(files.map(|name| format!("{PAGE} names {name}, which does not exist")));
    problems.extend(rows_without_test(&page));
    Ok(problems)
}

/// Rows of a feature whose last column names no test.
fn rows_without_test(page: &str) -> Vec<String> {
    let rows = page.lines().filter(|line| line.starts_with("| ") && !line.starts_with("| feature"));
    let bare = rows.filter(|row| {
        let columns: Vec<&str> = row.trim_matches('|').split(" | ").map(str::trim).collect();
        let heading = columns.first().is_some_and(|first| first.starts_with("**"));
        !heading && !columns.last().is_some_and(|last| last.contains('`') || last.contains("demo step"))
    });
    bare.map(|row| format!("{PAGE} has a feature without a test: {row}")).collect()
}

/// Test names are sentences; paths, fields, labels and metrics are not.
fn is_test_name(word: &str) -> bool {
    let plain = word.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_');
    let metric = word.starts_with("istio_") || word.starts_with("culvert_");
    plain && !metric && word.matches('_').count() >= 3
}

/// Names of all functions below a folder.
fn collect(folder: &Path, known: &mut BTreeSet<String>) -> Result<()> {
    for entry in fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if path.is_dir() && !name.starts_with('.') && name != "target" {
            collect(&path, known)?;
        } else if name.ends_with(".rs") {
            let text = fs::read_to_string(&path)?;
            known.extend(
                text.split("fn ").skip(1).filter_map(|rest| rest.split('(').next()).map(str::to_string),
            );
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_without_a_test_is_a_problem_and_headings_are_not() {
        let page = "| feature | how | test |\n|---|---|---|\n| **Group** | | |\n| a | b | `some_test_that_is_there` |\n";
        assert!(rows_without_test(page).is_empty());
        assert_eq!(rows_without_test("| a | `x_y_z_w` | none |\n").len(), 1);
    }

    #[test]
    fn only_sentences_are_taken_for_test_names() {
        assert!(is_test_name("what_is_not_enrolled_is_not_touched"));
        assert!(
            !is_test_name("spec.http")
                && !is_test_name("istio_request_duration_milliseconds")
                && !is_test_name("a-b")
        );
    }
}
