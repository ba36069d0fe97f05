//! Generated protocol types; `cargo xtask codegen` writes the files below `api/` from `mesh-net/proto`.
#![allow(missing_docs, clippy::all, clippy::allow_attributes_without_reason, reason = "generated code")]

/// `google.rpc`.
pub mod google {
    pub mod rpc {
        include!("api/google.rpc.rs");
    }
}

/// `envoy.*`: the subset that delta xDS needs.
pub mod envoy {
    pub mod config {
        pub mod core {
            pub mod v3 {
                include!("api/envoy.config.core.v3.rs");
            }
        }
    }
    pub mod service {
        pub mod discovery {
            pub mod v3 {
                include!("api/envoy.service.discovery.v3.rs");
            }
        }
    }
}

/// `istio.*`: WDS, authorization and the certificate service.
pub mod istio {
    pub mod workload {
        include!("api/istio.workload.rs");
    }
    pub mod security {
        include!("api/istio.security.rs");
    }
    pub mod v1 {
        pub mod auth {
            include!("api/istio.v1.auth.rs");
        }
    }
}

/// `culvert.*`: our L7 resources.
pub mod culvert {
    pub mod l7 {
        pub mod v1 {
            include!("api/culvert.l7.v1.rs");
        }
    }
}
