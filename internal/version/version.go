// Package version tells which build of Sarn this is. The variables are set when the binary is linked:
//
//	go build -ldflags "-X github.com/sarnmesh/sarn/internal/version.Version=0.1.0 -X …Commit=abc1234 -X …BuildDate=2026-01-02T15:04:05Z"
package version

import "strings"

// Set by the linker.
var (
	Version   = "0.1.0-dev"            // a semantic version, with a pre-release after a hyphen
	Commit    = ""                     // of the source tree, empty if unknown
	BuildDate = "1970-01-01T00:00:00Z" // RFC 3339
)

// Name is what the product calls itself where people read it.
const Name = "Sarn"

// Compat is the version told where clients decide by it what they may ask for: the build tag of gossip members,
// Config.Version of /v1/agent/self, and consul-version in node metadata. Clients parse it as a semantic version of the
// reference agent and compare it with the releases that brought a feature; Sarn offers the interfaces of this one. It has
// no metadata: some clients take "ent" there for the paid edition.
const Compat = "1.21.0"

// Number is Version without its pre-release.
func Number() string {
	n, _, _ := strings.Cut(Version, "-")
	return n
}

// Prerelease is what follows the hyphen in Version, empty for a release.
func Prerelease() string {
	_, pre, _ := strings.Cut(Version, "-")
	return pre
}

// Build is the build tag of a gossip member: the compatible version, a colon, and the commit. Clients split it at its
// only colon.
func Build() string {
	if Commit == "" {
		return Compat + ":dev"
	}
	return Compat + ":" + Commit
}

// Human is the version as it is shown to people, such as "v0.1.0".
func Human() string { return "v" + Version }
