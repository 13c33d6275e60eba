// Package ca is the certificate authority of the mesh: what roots and leaves look like, which requests may be signed,
// and how one root takes over from another (spec/connect.md sections 2 to 4).
//
// The package is pure. Time, keys and randomness come in as parameters; a Provider that talks to an outside authority
// is implemented elsewhere.
package ca
