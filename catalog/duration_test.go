package catalog_test

import (
	"encoding/json"
	"testing"
	"time"

	"github.com/sarnmesh/sarn/catalog"
)

func TestDurations(t *testing.T) {
	const before = catalog.Duration(7)
	tests := []struct {
		in   string
		want catalog.Duration
		err  string
	}{
		{in: `"1m30s"`, want: catalog.Duration(90 * time.Second)},
		{in: `""`},
		{in: `1000000000`, want: catalog.Duration(time.Second)},
		{in: `-5.9`, want: -5},
		{in: `null`, want: before},
		{in: `true`, want: before},
		{in: `["1s"]`, want: before},
		{in: `"5"`, want: before, err: `time: missing unit in duration "5"`},
		{in: `"9999999h"`, want: before, err: `time: invalid duration "9999999h"`},
		{in: `9223372036854774784`, want: 9223372036854774784},
		{in: `9223372036854775807`, want: before, err: `time: invalid duration "9.223372036854776e+18"`},
		{in: `-1e19`, want: before, err: `time: invalid duration "-1e+19"`},
		{in: `1e300`, want: before, err: `time: invalid duration "1e+300"`},
	}
	for _, tt := range tests {
		d := before
		err := json.Unmarshal([]byte(tt.in), &d)
		if d != tt.want || err == nil && tt.err != "" || err != nil && err.Error() != tt.err {
			t.Errorf("%s = %v, %v; want %v, %s", tt.in, d, err, tt.want, tt.err)
		}
	}
}
