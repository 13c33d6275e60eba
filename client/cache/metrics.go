package cache

import (
	"strings"
	"sync"
	"time"
	"unicode"

	"github.com/hashicorp/go-metrics"

	"github.com/sarnmesh/sarn/internal/measure"
)

// expireEvery is the most time between two looks at what has expired, and between two reports of how much is kept.
const expireEvery = 10 * time.Second

// Metrics of this package. Beside these there are, for each method, cache.TYPE.hit, miss_new, miss_block, fetch_success
// and fetch_error, where TYPE is the method's name in lower case with "-" in it: health-instances.
var (
	// metricEntries is a gauge: views and kept answers.
	metricEntries = []string{"cache", "entries_count"}
	// metricBypass counts requests that were answered without a view, since there was no room for one.
	metricBypass = measure.NewCounter("cache.bypass")
	// metricExpired counts views that ended since nobody used them.
	metricExpired = measure.NewCounter("cache.evict_expired")
	// metricFetched counts fetches that succeeded. Label: result_not_modified, "true" when there was no news.
	metricFetched    = measure.NewCounter("cache.fetch_success", metrics.Label{Name: "result_not_modified", Value: "false"})
	metricFetchedOld = measure.NewCounter("cache.fetch_success", metrics.Label{Name: "result_not_modified", Value: "true"})
	// metricFetchError counts fetches that failed.
	metricFetchError = measure.NewCounter("cache.fetch_error")
)

// counts are those of the views of one method.
type counts struct{ hit, missNew, missBlock, fetchSuccess, fetchError *measure.Counter }

var countsByMethod sync.Map // of *counts, by name of method

func countsOf(method string) *counts {
	if c, ok := countsByMethod.Load(method); ok {
		return c.(*counts)
	}
	of := func(what string) *measure.Counter {
		return measure.NewCounter("cache." + typeName(method) + "." + what)
	}
	c, _ := countsByMethod.LoadOrStore(method, &counts{of("hit"), of("miss_new"), of("miss_block"), of("fetch_success"), of("fetch_error")})
	return c.(*counts)
}

// typeName is a method's name in metrics.
func typeName(method string) string {
	var b strings.Builder
	small := false
	for _, r := range method {
		switch {
		case r == '.':
			b.WriteByte('-')
			small = false
			continue
		case unicode.IsUpper(r) && small:
			b.WriteByte('-')
		}
		small = unicode.IsLower(r)
		b.WriteRune(unicode.ToLower(r))
	}
	return b.String()
}

// got counts a request.
func (c *counts) got(hit, blocking bool) {
	switch {
	case hit:
		c.hit.Add(1)
	case blocking:
		c.missBlock.Add(1)
	default:
		c.missNew.Add(1)
	}
}

// fetched counts a fetch that succeeded.
func (c *counts) fetched(old bool) {
	c.fetchSuccess.Add(1)
	if old {
		metricFetchedOld.Add(1)
	} else {
		metricFetched.Add(1)
	}
}
