package local

import (
	"strings"

	"github.com/hashicorp/go-metrics"
)

// countRefused counts a change that the token it was sent with does not grant: acl.blocked.KIND.registration and
// acl.blocked.KIND.deregistration, where KIND is node, service or check.
func countRefused(kind string) {
	what := "registration"
	if gone, ok := strings.CutPrefix(kind, "deregistered "); ok {
		kind, what = gone, "deregistration"
	}
	metrics.IncrCounter([]string{"acl", "blocked", kind, what}, 1)
}
