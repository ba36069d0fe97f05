//! The roots in the configuration of the validating webhook, so that the API server trusts the control
//! plane. Written by the lease holder where the configuration is; without it nothing is asked.

use std::time::Duration;

use base64::{Engine, engine::general_purpose::STANDARD};
use k8s_openapi::{ByteString, api::admissionregistration::v1::ValidatingWebhookConfiguration};
use kube::{
    Api, Client,
    api::{Patch, PatchParams},
};
use serde_json::json;
use tokio::{
    sync::watch,
    time::{sleep, timeout},
};

use super::{lease::while_held, secret::bundle};
use crate::ca::Authority;

/// Name of the configuration.
const NAME: &str = "culvert-control";
/// Another one than the installer's, which does not know the roots and would take them away again.
const MANAGER: &str = "culvert-validation";
/// The configuration is looked at this often: it may come later, or be made anew.
const LOOK: Duration = Duration::from_secs(15);
/// Longest request.
const REQUEST: Duration = Duration::from_secs(10);

/// Writes while the lease is held.
pub async fn trust(client: Client, authority: Authority, mut held: watch::Receiver<bool>) {
    while_held(&mut held, || {
        let (client, mut authority) = (client.clone(), authority.clone());
        async move {
            loop {
                let roots = bundle([authority.there().await.roots()]);
                match timeout(REQUEST, put(&client, &roots)).await {
                    Ok(Ok(())) => {}
                    Ok(Err(error)) => {
                        tracing::warn!(%error, "the webhook {NAME} cannot be told the roots; tried again")
                    }
                    Err(_) => {
                        tracing::warn!("the webhook {NAME} was not told the roots in time; tried again")
                    }
                }
                tokio::select! {
                    () = authority.changed() => {}
                    () = sleep(LOOK) => {}
                }
            }
        }
    })
    .await;
}

async fn put(client: &Client, roots: &str) -> Result<(), kube::Error> {
    let api = Api::<ValidatingWebhookConfiguration>::all(client.clone());
    let there = match api.get_opt(NAME).await {
        // With `validation.enabled=false` there is neither a configuration nor the right to look for one.
        Err(kube::Error::Api(status)) if status.code == 403 => None,
        answer => answer?,
    };
    let Some(there) = there else { return Ok(()) };
    let all = there.webhooks.unwrap_or_default();
    let wanted = ByteString(roots.as_bytes().to_vec());
    if all.iter().all(|one| one.client_config.ca_bundle.as_ref() == Some(&wanted)) {
        return Ok(());
    }
    let trusts = |name: &str| json!({"name": name, "clientConfig": {"caBundle": STANDARD.encode(roots)}});
    let webhooks: Vec<_> = all.iter().map(|one| trusts(&one.name)).collect();
    let patch = json!({"apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingWebhookConfiguration",
        "metadata": {"name": NAME}, "webhooks": webhooks});
    api.patch(NAME, &PatchParams::apply(MANAGER).force(), &Patch::Apply(&patch)).await.map(drop)
}
