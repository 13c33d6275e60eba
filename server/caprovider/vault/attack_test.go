package vault_test

import (
	"testing"

	"github.com/sarnmesh/sarn/server/caprovider/vault"
)

// A setting that is given twice, in two spellings, does not hide from the check one that the provider goes by: the machine's
// files and identities stay out of reach over the network.
func TestLocalFilesInTwoSpellings(t *testing.T) {
	for name, config := range map[string]map[string]any{
		"file": {"Address": "https://evil.example", "CertFile": "", "certfile": "/etc/ssl/own.pem"},
		"identity": {
			"Address": "https://evil.example", "AuthMethod": map[string]any{"Type": "github", "Params": map[string]any{"token": "x"}},
			"authmethod": map[string]any{"Type": "kubernetes", "Params": map[string]any{"role": "r"}},
		},
		"parameter": {
			"Address": "https://evil.example", "AuthMethod": map[string]any{"Type": "kubernetes", "Params": map[string]any{"role": "r", "jwt": "x", "JWT": ""}},
		},
	} {
		for range 64 { // maps have no order
			if vault.MayBeSet(config, nil) == nil {
				t.Errorf("%s: may be set over the network", name)
				break
			}
		}
	}
}
