//! Matching the parts of an L7 policy.

use std::net::IpAddr;

use ipnet::IpNet;

use super::RequestFacts;
use crate::model::{
    PolicyAction, ServiceAccountMatch, StringMatch,
    l7::{ConditionKey, L7Condition, L7Operation, L7Policy, L7Rule, L7Source},
};

/// Whether a rule holds: one of its sources, one of its operations and all of its conditions. An
/// empty block, which validation refuses, fails closed: it matches for DENY and not for ALLOW. So does
/// what a rule asks of HTTP when the connection is plain TCP: ALLOW does not hold, and DENY holds
/// whatever it asks.
pub(super) fn rule_matches(rule: &L7Rule, action: PolicyAction, facts: &RequestFacts<'_>) -> bool {
    if is_tcp(facts) && action == PolicyAction::Allow && asks_http(rule) {
        return false;
    }
    let empty = action == PolicyAction::Deny;
    let from = |s: &L7Source| if *s == L7Source::default() { empty } else { source_matches(s, facts) };
    let to = |o: &L7Operation| if *o == L7Operation::default() { empty } else { operation_matches(o, facts) };
    (rule.from.is_empty() || rule.from.iter().any(from))
        && (rule.to.is_empty() || rule.to.iter().any(to))
        && rule.when.iter().all(|c| condition_matches(c, facts))
}

/// Whether something holds for the requests of a connection: *and* is the least of several, *or* the most.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Holds {
    /// For none.
    Never,
    /// That depends on path, method, host or headers.
    Sometimes,
    /// For all.
    Always,
}

impl From<bool> for Holds {
    fn from(holds: bool) -> Self {
        if holds { Self::Always } else { Self::Never }
    }
}

/// Whether a policy matches the requests of a connection; what `facts` says of a request is not read.
pub(super) fn policy_holds(policy: &L7Policy, facts: &RequestFacts<'_>) -> Holds {
    let rules = policy.rules.iter().map(|rule| rule_holds(rule, policy.action, facts));
    rules.max().unwrap_or(Holds::Never)
}

/// As [`rule_matches`].
fn rule_holds(rule: &L7Rule, action: PolicyAction, facts: &RequestFacts<'_>) -> Holds {
    let empty = action == PolicyAction::Deny;
    let from = |s: &L7Source| if *s == L7Source::default() { empty } else { source_matches(s, facts) };
    let to = |o: &L7Operation| match *o == L7Operation::default() {
        true => empty.into(),
        false => operation_holds(o, facts),
    };
    let when = |c: &L7Condition| match c.key {
        ConditionKey::Header(_) => Holds::Sometimes,
        _ => condition_matches(c, facts).into(),
    };
    let from = rule.from.is_empty() || rule.from.iter().any(from);
    let to =
        if rule.to.is_empty() { Holds::Always } else { rule.to.iter().map(to).max().unwrap_or(Holds::Never) };
    let when = rule.when.iter().map(when).min().unwrap_or(Holds::Always);
    Holds::from(from).min(to).min(when)
}

fn operation_holds(operation: &L7Operation, facts: &RequestFacts<'_>) -> Holds {
    let L7Operation { ports, not_ports, hosts, not_hosts, methods, not_methods, paths, not_paths } =
        operation;
    let asks = [hosts, not_hosts, methods, not_methods, paths, not_paths].iter().any(|list| !list.is_empty());
    match both(ports, not_ports, |port| *port == facts.port) {
        false => Holds::Never,
        true if asks => Holds::Sometimes,
        true => Holds::Always,
    }
}

fn both<T>(any: &[T], none: &[T], is: impl Fn(&T) -> bool) -> bool {
    (any.is_empty() || any.iter().any(&is)) && !none.iter().any(&is)
}

fn text(any: &[StringMatch], none: &[StringMatch], value: Option<&str>) -> bool {
    both(any, none, |m| value.is_some_and(|v| m.matches(v)))
}

fn source_matches(source: &L7Source, facts: &RequestFacts<'_>) -> bool {
    let client = &facts.client;
    let account = |m: &ServiceAccountMatch| {
        client.namespace == Some(&*m.namespace) && client.service_account == Some(&*m.service_account)
    };
    text(&source.principals, &source.not_principals, client.principal)
        && text(&source.namespaces, &source.not_namespaces, client.namespace)
        && both(&source.service_accounts, &source.not_service_accounts, account)
        && both(&source.ip_blocks, &source.not_ip_blocks, |block| block.contains(&client.ip))
        // Nobody in front of a waypoint is trusted to say who asks: the request's address is the connection's.
        && both(&source.remote_ip_blocks, &source.not_remote_ip_blocks, |block| block.contains(&client.ip))
}

fn is_tcp(facts: &RequestFacts<'_>) -> bool {
    facts.method.is_empty()
}

/// Whether a rule asks for anything that only an HTTP request has.
fn asks_http(rule: &L7Rule) -> bool {
    let of_http = |o: &L7Operation| {
        let L7Operation { ports: _, not_ports: _, hosts, not_hosts, methods, not_methods, paths, not_paths } =
            o;
        [hosts, not_hosts, methods, not_methods, paths, not_paths].iter().any(|list| !list.is_empty())
    };
    rule.to.iter().any(of_http) || rule.when.iter().any(|c| matches!(c.key, ConditionKey::Header(_)))
}

fn operation_matches(operation: &L7Operation, facts: &RequestFacts<'_>) -> bool {
    both(&operation.ports, &operation.not_ports, |port| *port == facts.port)
        && (is_tcp(facts)
            || both(&operation.hosts, &operation.not_hosts, |m| host_matches(m, facts.authority))
                && both(&operation.methods, &operation.not_methods, |m| m.matches(facts.method))
                && both(&operation.paths, &operation.not_paths, |m| path_matches(m, facts.path)))
}

/// Hosts ignore case; a host without a port also matches when the client names the port, even an empty
/// one (RFC 3986 section 3.2.3), or writes the host with the dot of the root: servers take these for the same.
fn host_matches(wanted: &StringMatch, authority: &str) -> bool {
    let full = authority.to_ascii_lowercase();
    let bare = match full.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|b| b.is_ascii_digit()) => host,
        _ => &full,
    };
    let bare = bare.strip_suffix('.').unwrap_or(bare);
    let lower = match wanted {
        StringMatch::Exact(t) => StringMatch::Exact(t.to_ascii_lowercase().into()),
        StringMatch::Prefix(t) => StringMatch::Prefix(t.to_ascii_lowercase().into()),
        StringMatch::Suffix(t) => StringMatch::Suffix(t.to_ascii_lowercase().into()),
        StringMatch::Presence => StringMatch::Presence,
    };
    lower.matches(&full) || lower.matches(bare)
}

/// Paths: Istio's string forms, or a template with `{*}` (one segment) and `{**}` (the rest).
fn path_matches(wanted: &StringMatch, path: &str) -> bool {
    match wanted {
        StringMatch::Exact(template) if template.contains("{*") => {
            let template: Vec<&str> = template.split('/').collect();
            let path: Vec<&str> = path.split('/').collect();
            template_matches(&template, &path)
        }
        other => other.matches(path),
    }
}

fn template_matches(template: &[&str], path: &[&str]) -> bool {
    match (template.split_first(), path.split_first()) {
        (None, None) => true,
        // `{**}` stands for zero or more segments; validation allows it once, at the end or before literals.
        (Some((&"{**}", rest)), _) => (0..=path.len()).any(|n| template_matches(rest, &path[n..])),
        (Some((&"{*}", rest)), Some((segment, more))) => !segment.is_empty() && template_matches(rest, more),
        (Some((literal, rest)), Some((segment, more))) => literal == segment && template_matches(rest, more),
        _ => false,
    }
}

fn condition_matches(condition: &L7Condition, facts: &RequestFacts<'_>) -> bool {
    let L7Condition { key, values, not_values } = condition;
    match key {
        ConditionKey::Header(_) if is_tcp(facts) => true,
        ConditionKey::Header(name) => {
            let value = facts.headers.get(name);
            text(values, not_values, value.as_deref())
        }
        ConditionKey::SourceNamespace => text(values, not_values, facts.client.namespace),
        ConditionKey::SourcePrincipal => text(values, not_values, facts.client.principal),
        ConditionKey::SourceIp | ConditionKey::RemoteIp => {
            both(values, not_values, |m| in_block(m, Some(facts.client.ip)))
        }
        ConditionKey::DestinationIp => both(values, not_values, |m| in_block(m, facts.destination_ip)),
        ConditionKey::DestinationPort => {
            let port = facts.port.to_string();
            text(values, not_values, Some(&port))
        }
    }
}

fn in_block(block: &StringMatch, ip: Option<IpAddr>) -> bool {
    let (StringMatch::Exact(text), Some(ip)) = (block, ip) else { return false };
    match text.parse::<IpNet>() {
        Ok(net) => net.contains(&ip),
        Err(_) => text.parse::<IpAddr>().is_ok_and(|want| want == ip),
    }
}
