//! Which line a field is on: follows a field path through block-style YAML.

/// Line, from 1, of `path` (`spec.http[0].timeout`) in a document; the nearest enclosing line when the
/// rest is written in flow style or absent.
pub fn locate(document: &str, path: &str) -> usize {
    let lines: Vec<&str> = document.lines().collect();
    let first = lines.iter().position(|l| is_content(l)).unwrap_or(0);
    let (mut from, mut to, mut found) = (first, lines.len(), first);
    let mut floor = 0;
    for segment in path.split('.').filter(|s| !s.is_empty()) {
        let (key, indices) = split(segment);
        let Some((at, indent)) = find_key(&lines, from, to, floor, key) else { return found + 1 };
        found = at;
        (from, to) = (at + 1, block_end(&lines, at, to, indent));
        floor = indent + 1;
        for index in indices {
            let Some((at, indent, end)) = find_item(&lines, from, to, index) else { return found + 1 };
            found = at;
            (from, to, floor) = (at, end, indent + 2);
        }
    }
    found + 1
}

fn is_content(line: &str) -> bool {
    let text = line.trim_start();
    !text.is_empty() && !text.starts_with('#') && !text.starts_with("---")
}

fn indent(line: &str) -> usize {
    line.len() - line.trim_start().len()
}

/// The column of the first key of a line, past any `- `.
fn key_column(line: &str) -> usize {
    line.len() - line.trim_start_matches([' ', '-']).len()
}

fn split(segment: &str) -> (&str, Vec<usize>) {
    let mut parts = segment.split('[');
    let key = parts.next().unwrap_or_default();
    (key, parts.filter_map(|p| p.trim_end_matches(']').parse().ok()).collect())
}

fn find_key(lines: &[&str], from: usize, to: usize, floor: usize, key: &str) -> Option<(usize, usize)> {
    let mut column = None;
    for (at, line) in lines.iter().enumerate().take(to).skip(from).filter(|(_, l)| is_content(l)) {
        let here = key_column(line);
        if here < floor || here > *column.get_or_insert(here) {
            continue;
        }
        let text = line[here..].trim_start_matches(['"', '\'']);
        let rest = text.strip_prefix(key).map(|r| r.trim_start_matches(['"', '\'']));
        if rest.is_some_and(|r| r.starts_with(':')) {
            return Some((at, here));
        }
    }
    None
}

fn block_end(lines: &[&str], at: usize, to: usize, column: usize) -> usize {
    (at + 1..to)
        .find(|next| {
            let line = lines[*next];
            is_content(line)
                && (indent(line) < column || (indent(line) == column && !line.trim_start().starts_with('-')))
        })
        .unwrap_or(to)
}

fn find_item(lines: &[&str], from: usize, to: usize, index: usize) -> Option<(usize, usize, usize)> {
    let is_item = |line: &str| is_content(line) && line.trim_start().starts_with('-');
    let first = (from..to).find(|at| is_item(lines[*at]))?;
    let column = indent(lines[first]);
    let mut items = (first..to).filter(|at| is_item(lines[*at]) && indent(lines[*at]) == column);
    let at = items.nth(index)?;
    Some((at, column, items.next().unwrap_or(to)))
}

#[cfg(test)]
mod tests {
    use super::locate;

    #[test]
    fn a_field_is_found_through_mappings_and_lists() {
        let text = "kind: A\nmetadata:\n  name: x\nspec:\n  http:\n    - name: a\n      timeout: 1s\n    - route:\n      - weight: 3\n      timeout: x\n";
        assert_eq!(locate(text, "kind"), 1);
        assert_eq!(locate(text, "metadata.name"), 3);
        assert_eq!(locate(text, "spec.http[0].timeout"), 7);
        assert_eq!(locate(text, "spec.http[1].route[0].weight"), 9);
        assert_eq!(locate(text, "spec.http[1].timeout"), 10);
        assert_eq!(locate(text, "spec.http[1].nothing"), 8);
    }
}
