//! `istio.security.Authorization` ⇄ [`Policy`].
//!
//! Fail closed: ztunnel drops an address of a wrong length silently, which can turn a DENY into a
//! no-op; here the whole resource is refused by name and the last good version stays.

use ipnet::IpNet;
use mesh_core::model::{
    L4Clause, L4Match, L4Rule, Policy, PolicyAction, PolicyName, PolicyScope, ServiceAccountMatch,
    StringMatch,
};

use super::{WireError, ip_from_bytes, ip_to_bytes, port};
use crate::api::istio::security as pb;

/// Parses a policy. `name` is the xDS resource name, which is the key (not the body's fields).
pub fn from_authorization(name: &str, a: pb::Authorization) -> Result<Policy, WireError> {
    let key: PolicyName =
        name.parse().map_err(|_| WireError::new("name", format!("{name:?} is not <namespace>/<name>")))?;
    let scope = match pb::Scope::try_from(a.scope) {
        Ok(pb::Scope::Global) => PolicyScope::Global,
        Ok(pb::Scope::Namespace) => PolicyScope::Namespace,
        Ok(pb::Scope::WorkloadSelector) => PolicyScope::Workload,
        Err(_) => return Err(WireError::new("scope", format!("{} is unknown", a.scope))),
    };
    let action = match pb::Action::try_from(a.action) {
        Ok(pb::Action::Allow) => PolicyAction::Allow,
        Ok(pb::Action::Deny) => PolicyAction::Deny,
        Err(_) => return Err(WireError::new("action", format!("{} is unknown", a.action))),
    };
    let rules = a.rules.into_iter().map(from_rule).collect::<Result<_, _>>()?;
    Ok(Policy { key, scope, action, rules, dry_run: a.dry_run })
}

fn from_rule(rule: pb::Rule) -> Result<L4Rule, WireError> {
    let clauses = rule.clauses.into_iter().map(from_clause).collect::<Result<_, _>>()?;
    Ok(L4Rule { clauses })
}

fn from_clause(clause: pb::Clause) -> Result<L4Clause, WireError> {
    let matches = clause.matches.into_iter().map(from_match).collect::<Result<_, _>>()?;
    Ok(L4Clause { matches })
}

fn from_match(m: pb::Match) -> Result<L4Match, WireError> {
    Ok(L4Match {
        namespaces: from_strings("namespaces", m.namespaces)?,
        not_namespaces: from_strings("not_namespaces", m.not_namespaces)?,
        principals: from_strings("principals", m.principals)?,
        not_principals: from_strings("not_principals", m.not_principals)?,
        source_ips: from_cidrs("source_ips", m.source_ips)?,
        not_source_ips: from_cidrs("not_source_ips", m.not_source_ips)?,
        destination_ips: from_cidrs("destination_ips", m.destination_ips)?,
        not_destination_ips: from_cidrs("not_destination_ips", m.not_destination_ips)?,
        destination_ports: from_ports("destination_ports", m.destination_ports)?,
        not_destination_ports: from_ports("not_destination_ports", m.not_destination_ports)?,
        service_accounts: m.service_accounts.into_iter().map(from_account).collect(),
        not_service_accounts: m.not_service_accounts.into_iter().map(from_account).collect(),
    })
}

fn from_strings(field: &str, values: Vec<pb::StringMatch>) -> Result<Vec<StringMatch>, WireError> {
    use pb::string_match::MatchType;
    values
        .into_iter()
        .map(|value| match value.match_type {
            Some(MatchType::Exact(text)) => Ok(StringMatch::Exact(text.into())),
            Some(MatchType::Prefix(text)) => Ok(StringMatch::Prefix(text.into())),
            Some(MatchType::Suffix(text)) => Ok(StringMatch::Suffix(text.into())),
            Some(MatchType::Presence(())) => Ok(StringMatch::Presence),
            None => Err(WireError::new(field, "a string match has no kind")),
        })
        .collect()
}

fn from_cidrs(field: &str, values: Vec<pb::Address>) -> Result<Vec<IpNet>, WireError> {
    values
        .into_iter()
        .map(|value| {
            let ip = ip_from_bytes(field, &value.address)?;
            u8::try_from(value.length).ok().and_then(|length| IpNet::new(ip, length).ok()).ok_or_else(|| {
                WireError::new(field, format!("prefix length {} is too long for {ip}", value.length))
            })
        })
        .collect()
}

fn from_ports(field: &str, values: Vec<u32>) -> Result<Vec<u16>, WireError> {
    values.into_iter().map(|value| port(field, value)).collect()
}

fn from_account(account: pb::ServiceAccountMatch) -> ServiceAccountMatch {
    ServiceAccountMatch {
        namespace: account.namespace.into(),
        service_account: account.service_account.into(),
    }
}

/// Wire form of a policy.
pub fn to_authorization(p: &Policy) -> pb::Authorization {
    pb::Authorization {
        name: p.key.name.to_string(),
        namespace: p.key.namespace.to_string(),
        scope: match p.scope {
            PolicyScope::Global => pb::Scope::Global,
            PolicyScope::Namespace => pb::Scope::Namespace,
            PolicyScope::Workload => pb::Scope::WorkloadSelector,
        } as i32,
        action: match p.action {
            PolicyAction::Allow => pb::Action::Allow,
            PolicyAction::Deny => pb::Action::Deny,
        } as i32,
        rules: p.rules.iter().map(to_rule).collect(),
        dry_run: p.dry_run,
        extensions: Vec::new(),
    }
}

fn to_rule(rule: &L4Rule) -> pb::Rule {
    let clause = |clause: &L4Clause| pb::Clause { matches: clause.matches.iter().map(to_match).collect() };
    pb::Rule { clauses: rule.clauses.iter().map(clause).collect() }
}

fn to_match(m: &L4Match) -> pb::Match {
    pb::Match {
        namespaces: to_strings(&m.namespaces),
        not_namespaces: to_strings(&m.not_namespaces),
        principals: to_strings(&m.principals),
        not_principals: to_strings(&m.not_principals),
        source_ips: to_cidrs(&m.source_ips),
        not_source_ips: to_cidrs(&m.not_source_ips),
        destination_ips: to_cidrs(&m.destination_ips),
        not_destination_ips: to_cidrs(&m.not_destination_ips),
        destination_ports: m.destination_ports.iter().map(|p| u32::from(*p)).collect(),
        not_destination_ports: m.not_destination_ports.iter().map(|p| u32::from(*p)).collect(),
        service_accounts: m.service_accounts.iter().map(to_account).collect(),
        not_service_accounts: m.not_service_accounts.iter().map(to_account).collect(),
        extensions: Vec::new(),
    }
}

fn to_strings(values: &[StringMatch]) -> Vec<pb::StringMatch> {
    use pb::string_match::MatchType;
    values
        .iter()
        .map(|value| pb::StringMatch {
            match_type: Some(match value {
                StringMatch::Exact(text) => MatchType::Exact(text.to_string()),
                StringMatch::Prefix(text) => MatchType::Prefix(text.to_string()),
                StringMatch::Suffix(text) => MatchType::Suffix(text.to_string()),
                StringMatch::Presence => MatchType::Presence(()),
            }),
        })
        .collect()
}

fn to_cidrs(values: &[IpNet]) -> Vec<pb::Address> {
    values
        .iter()
        .map(|net| pb::Address { address: ip_to_bytes(net.addr()), length: net.prefix_len().into() })
        .collect()
}

fn to_account(account: &ServiceAccountMatch) -> pb::ServiceAccountMatch {
    pb::ServiceAccountMatch {
        namespace: account.namespace.to_string(),
        service_account: account.service_account.to_string(),
    }
}
