package caprovider_test

import (
	"strings"
	"testing"

	"github.com/sarnmesh/sarn/connect/ca"
	"github.com/sarnmesh/sarn/server/caprovider/vault"
	"github.com/sarnmesh/sarn/server/caprovider/vaulttest"
)

func TestContractOfVault(t *testing.T) {
	const token = "hvs.secret-token"
	tests := []struct {
		name string
		old  bool
		more map[string]any
	}{
		{"new", false, nil},
		{"before issuers had names", true, nil},
		{"RSA", false, map[string]any{"PrivateKeyType": "rsa", "PrivateKeyBits": 2048}},
		{"namespaces", false, map[string]any{"Namespace": "team", "RootPKINamespace": "security"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			server := vaulttest.New(token)
			server.Old = tt.old
			address := serve(t, server)
			config := func(root, between string) map[string]any {
				c := map[string]any{"Address": address, "Token": token, "RootPKIPath": root, "IntermediatePKIPath": between}
				for k, v := range tt.more {
					c[k] = v
				}
				return c
			}
			contract(t, &subject{
				provider: ca.Vault, kind: vault.Kind{}, config: config("connect_root", "connect_inter/"), another: config("connect_root2/", "connect_inter2"),
				secrets: []string{token},
				left: func() string {
					var left []string
					for _, m := range server.Mounts() {
						if strings.Contains(m, "inter") {
							left = append(left, m)
						}
					}
					return strings.Join(left, ", ")
				},
			})
		})
	}
}
