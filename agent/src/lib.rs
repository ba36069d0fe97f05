//! Culvert: agent.
