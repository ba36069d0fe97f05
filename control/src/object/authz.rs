//! PeerAuthentication and AuthorizationPolicy.

use std::sync::Arc;

use ipnet::IpNet;
use mesh_core::model::{
    PolicyAction, ServiceAccountMatch, StringMatch,
    l7::{ConditionKey, L7Condition, L7Operation, L7Rule, L7Source},
};
use mesh_net::wire::l7::condition_key;
use serde_json::Value;

use super::Labels;
use crate::reader::Reader;

/// Mode of a peer authentication.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Inherit.
    Unset,
    /// Plaintext is let in (also DISABLE, as in ambient).
    Permissive,
    /// Only mutual TLS.
    Strict,
}

/// A peer authentication.
#[derive(Debug, Clone, PartialEq)]
pub struct PeerAuth {
    /// Selected pods; none is all of the namespace (or mesh).
    pub selector: Option<Labels>,
    /// Mode.
    pub mode: Mode,
    /// Exceptions by port.
    pub ports: Vec<(u16, Mode)>,
}

/// An authorization policy.
#[derive(Debug, Clone, PartialEq)]
pub struct Authorization {
    /// Selected pods; none is all.
    pub selector: Option<Labels>,
    /// Kind and name of what it is attached to.
    pub targets: Vec<(Arc<str>, Arc<str>)>,
    /// Effect.
    pub action: PolicyAction,
    /// Rules with all attributes; L4 enforcement uses what it can.
    pub rules: Vec<L7Rule>,
}

fn selector(spec: &Reader<'_>) -> Option<Labels> {
    spec.opt("selector", |s| {
        s.only(&["matchLabels"]);
        s.map("matchLabels")
    })
    .filter(|labels| !labels.is_empty())
}

fn mode(r: &Reader<'_>) -> Mode {
    match r.string("mode").as_deref() {
        None | Some("UNSET") => Mode::Unset,
        Some("STRICT") => Mode::Strict,
        Some("PERMISSIVE" | "DISABLE") => Mode::Permissive,
        Some(other) => {
            r.at("mode", |f| f.error("bad-value", format!("{other} is no mode"), "use STRICT or PERMISSIVE"));
            Mode::Unset
        }
    }
}

/// Parses a peer authentication.
pub fn peer(spec: &Reader<'_>) -> PeerAuth {
    if spec.present() {
        spec.only(&["selector", "mtls", "portLevelMtls"]);
    }
    let ports: Vec<(u16, Mode)> = spec.at("portLevelMtls", |list| {
        list.mapping();
        let keys = list.raw().as_object().into_iter().flatten().map(|(key, _)| key);
        keys.filter_map(|key| {
            let port = key.parse::<u16>().ok().filter(|p| *p > 0);
            if port.is_none() {
                list.error("bad-port", format!("{key:?} is no port"), "use a number from 1 to 65535");
            }
            Some((port?, list.at(key, |m| mode(&m))))
        })
        .collect()
    });
    let selector = selector(spec);
    if selector.is_none() && !ports.is_empty() {
        let reason = "exceptions by port have no effect without a selector";
        spec.at("portLevelMtls", |f| f.warn("no-effect", reason, "add a selector, or remove them"));
    }
    PeerAuth { selector, mode: spec.at("mtls", |m| mode(&m)), ports }
}

/// Parses an authorization policy of a namespace.
pub fn policy(spec: &Reader<'_>, namespace: &str) -> Authorization {
    if spec.present() {
        spec.only(&["selector", "targetRefs", "targetRef", "action", "rules"]);
    }
    let mut audit = false;
    let action = match spec.string("action").as_deref() {
        None | Some("ALLOW") => PolicyAction::Allow,
        Some("DENY") => PolicyAction::Deny,
        Some("AUDIT") => {
            let reason = "AUDIT is not supported; the policy admits and refuses nothing";
            spec.at("action", |f| f.warn("unsupported-field", reason, "remove the policy"));
            audit = true;
            PolicyAction::Deny
        }
        Some(other) => {
            let reason = format!("action {other} is not supported");
            spec.at("action", |f| f.error("bad-value", reason, "use ALLOW or DENY"));
            PolicyAction::Deny
        }
    };
    let target = |t: Reader<'_>| {
        t.known(&["group", "kind", "name"]);
        let kind = t.required("kind");
        if !["", "Service", "ServiceEntry", "Gateway", "GatewayClass"].contains(&&*kind) {
            let reason = format!("{kind} is no target of a policy");
            t.at("kind", |f| {
                f.error("bad-value", reason, "use Service, ServiceEntry, Gateway or GatewayClass")
            });
        }
        (kind, t.required("name"))
    };
    let mut targets = spec.each("targetRefs", target);
    targets.extend(spec.opt("targetRef", target));
    let mut rules = spec.each("rules", |r| rule(&r, namespace));
    if audit {
        rules.clear();
    }
    let selector = selector(spec);
    if selector.is_some() && !targets.is_empty() {
        spec.error("conflict", "selector and targetRefs exclude each other", "keep one of them");
    }
    Authorization { selector, targets, action, rules }
}

fn rule(r: &Reader<'_>, namespace: &str) -> L7Rule {
    if !r.raw().is_object() {
        r.error("wrong-type", "a rule must be a mapping", "write {} for a rule that matches everything");
    }
    r.only(&["from", "to", "when"]);
    L7Rule {
        from: r.each("from", |f| {
            f.only(&["source"]);
            f.at("source", |s| block(&s, |s| source(s, namespace)))
        }),
        to: r.each("to", |t| {
            t.only(&["operation"]);
            t.at("operation", |o| block(&o, operation))
        }),
        when: r.each("when", |w| condition(&w)).into_iter().flatten().collect(),
    }
}

/// A block that says nothing matches everybody: nobody writes one and means it. Empty lists say nothing.
fn block<T>(r: &Reader<'_>, read: impl FnOnce(&Reader<'_>) -> T) -> T {
    let nothing = |value: &Value| value.is_null() || value.as_array().is_some_and(Vec::is_empty);
    if r.raw().as_object().is_none_or(|fields| fields.values().all(nothing)) {
        r.error("missing-field", "is missing or empty", "say what it matches, or remove the entry");
    }
    read(r)
}

fn texts(r: &Reader<'_>, name: &str) -> Vec<StringMatch> {
    r.strings(name).iter().map(|text| StringMatch::from_istio(text)).collect()
}

fn source(s: &Reader<'_>, namespace: &str) -> L7Source {
    s.only(&[
        "principals",
        "notPrincipals",
        "namespaces",
        "notNamespaces",
        "serviceAccounts",
        "notServiceAccounts",
        "ipBlocks",
        "notIpBlocks",
        "remoteIpBlocks",
        "notRemoteIpBlocks",
    ]);
    let accounts = |name: &str| {
        let split = |text: Arc<str>| match text.split_once('/') {
            Some((ns, sa)) => ServiceAccountMatch { namespace: ns.into(), service_account: sa.into() },
            None => ServiceAccountMatch { namespace: namespace.into(), service_account: text },
        };
        s.strings(name).into_iter().map(split).collect()
    };
    L7Source {
        principals: texts(s, "principals"),
        not_principals: texts(s, "notPrincipals"),
        namespaces: texts(s, "namespaces"),
        not_namespaces: texts(s, "notNamespaces"),
        service_accounts: accounts("serviceAccounts"),
        not_service_accounts: accounts("notServiceAccounts"),
        ip_blocks: blocks(s, "ipBlocks"),
        not_ip_blocks: blocks(s, "notIpBlocks"),
        remote_ip_blocks: blocks(s, "remoteIpBlocks"),
        not_remote_ip_blocks: blocks(s, "notRemoteIpBlocks"),
    }
}

/// An address or CIDR.
pub fn cidr(text: &str) -> Option<IpNet> {
    text.parse().ok().or_else(|| text.parse::<std::net::IpAddr>().ok().map(IpNet::from))
}

fn blocks(s: &Reader<'_>, name: &str) -> Vec<IpNet> {
    let item = |item: Reader<'_>| {
        let text = item.element()?;
        let net = cidr(text);
        if net.is_none() {
            item.error("bad-cidr", format!("{text:?} is no address or CIDR"), "write it like 10.0.0.0/8");
        }
        net
    };
    s.each(name, item).into_iter().flatten().collect()
}

fn operation(o: &Reader<'_>) -> L7Operation {
    o.only(&["hosts", "notHosts", "ports", "notPorts", "methods", "notMethods", "paths", "notPaths"]);
    let ports = |name: &str| {
        let item = |item: Reader<'_>| {
            let text = item.raw().as_str().map_or_else(|| item.raw().to_string(), str::to_string);
            let port = text.parse::<u16>().ok().filter(|p| *p > 0);
            if port.is_none() {
                item.error("bad-port", format!("{text:?} is no port"), "use a number from 1 to 65535");
            }
            port
        };
        o.each(name, item).into_iter().flatten().collect()
    };
    L7Operation {
        hosts: texts(o, "hosts"),
        not_hosts: texts(o, "notHosts"),
        ports: ports("ports"),
        not_ports: ports("notPorts"),
        methods: texts(o, "methods"),
        not_methods: texts(o, "notMethods"),
        paths: texts(o, "paths"),
        not_paths: texts(o, "notPaths"),
    }
}

fn condition(w: &Reader<'_>) -> Option<L7Condition> {
    w.only(&["key", "values", "notValues"]);
    let name = w.required("key");
    let Some(key) = condition_key(&name) else {
        w.at("key", |f| f.error("bad-value", format!("{name:?} is not supported"), "use a supported key"));
        return None;
    };
    let (values, not_values) = (texts(w, "values"), texts(w, "notValues"));
    if values.is_empty() && not_values.is_empty() {
        w.error("missing-field", "there are neither values nor notValues", "add values");
    }
    for field in ["values", "notValues"] {
        w.each(field, |item| check_value(&item, &key));
    }
    Some(L7Condition { key, values, not_values })
}

/// A value that can never be compared would drop out of its list and widen the policy.
fn check_value(item: &Reader<'_>, key: &ConditionKey) {
    let Some(text) = item.raw().as_str().filter(|text| !text.is_empty()) else { return };
    match key {
        ConditionKey::SourceIp | ConditionKey::RemoteIp | ConditionKey::DestinationIp
            if cidr(text).is_none() =>
        {
            let reason = format!("{text:?} is no address or CIDR");
            item.error("bad-cidr", reason, "write it like 10.0.0.0/8");
        }
        ConditionKey::DestinationPort if text.parse::<u16>().is_err() => {
            item.error("bad-port", format!("{text:?} is no port"), "use a number from 1 to 65535");
        }
        _ => {}
    }
}
