package caprovider_test

import (
	"fmt"
	"testing"

	"github.com/sarnmesh/sarn/connect/ca"
	"github.com/sarnmesh/sarn/server/caprovider/awsauth"
	"github.com/sarnmesh/sarn/server/caprovider/awspca"
	"github.com/sarnmesh/sarn/server/caprovider/awstest"
)

// awsEnvironment is one in which the stand-in is AWS.
func awsEnvironment(address string, c *awsauth.Credentials) func(string) string {
	return func(name string) string {
		return map[string]string{
			"AWS_ENDPOINT_URL_ACM_PCA": address, "AWS_REGION": awstest.Region, "AWS_ACCESS_KEY_ID": c.KeyID,
			"AWS_SECRET_ACCESS_KEY": c.Secret, "AWS_SESSION_TOKEN": c.Token,
		}[name]
	}
}

func TestContractOfAWS(t *testing.T) {
	for _, tt := range []struct {
		name string
		more map[string]any
	}{
		{"ec", map[string]any{"DeleteOnExit": true}},
		{"rsa", map[string]any{"DeleteOnExit": true, "PrivateKeyType": "rsa", "PrivateKeyBits": 2048}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel() // AWS takes its time
			server := &awstest.Server{Credentials: awsauth.Credentials{KeyID: "AKIDTEST", Secret: "very-secret", Token: "session-secret"}, Throttle: tt.name == "rsa"}
			kind := awspca.Kind{Getenv: awsEnvironment(serve(t, server), &server.Credentials)}
			contract(t, &subject{
				provider: ca.AWSPCA, kind: kind, config: tt.more, secrets: []string{"very-secret", "session-secret"},
				left: func() string {
					for arn, status := range server.Authorities() {
						if status != "DELETED" {
							return fmt.Sprintf("%s %s", arn, status)
						}
					}
					return ""
				},
			})
		})
	}
}
