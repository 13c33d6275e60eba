// Package e2e tests the built binary with real processes: clusters, kills, Envoy, the quick start. Its tests need
// SARN_BIN, or build the binary themselves; `go test -short` leaves them out.
package e2e
