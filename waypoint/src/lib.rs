//! Culvert: waypoint.
