package entry

import (
	"errors"
	"fmt"
	"math"
)

// A ServiceSplitter spreads the requests for a service over services and subsets by weight (spec/connect.md section
// 8.5).
type ServiceSplitter struct {
	Header
	Splits []ServiceSplit // weights sum up to 100
}

// A ServiceSplit is one share.
type ServiceSplit struct {
	Weight          float64     // percent, kept to two decimals
	Service         string      `json:",omitempty"` // empty means the splitter's own
	ServiceSubset   string      `json:",omitempty"`
	Namespace       string      `json:",omitempty"`
	Partition       string      `json:",omitempty"`
	RequestHeaders  *HeaderEdit `json:",omitempty"`
	ResponseHeaders *HeaderEdit `json:",omitempty"`
}

// Normalize rounds the weights.
func (e *ServiceSplitter) Normalize() {
	for i := range e.Splits {
		e.Splits[i].Weight = RoundWeight(e.Splits[i].Weight)
	}
}

// RoundWeight keeps two decimals of a percentage.
func RoundWeight(w float64) float64 { return math.Round(w*100) / 100 }

// Validate checks the entry.
func (e *ServiceSplitter) Validate() error {
	if e.Name == "" {
		return errName
	}
	if len(e.Splits) == 0 {
		return errors.New("no splits configured")
	}
	hundredths := 0
	seen := map[[2]string]bool{}
	for _, s := range e.Splits {
		if err := checkTenancy("Splits", s.Namespace, s.Partition, ""); err != nil {
			return err
		}
		if s.Weight < 0 || s.Weight > 100 {
			return fmt.Errorf("the weight of a split must be between 0 and 100, not %f", s.Weight)
		}
		hundredths += int(math.Round(s.Weight * 100))
		service := s.Service
		if service == "" {
			service = e.Name
		}
		to := [2]string{service, s.ServiceSubset}
		if seen[to] {
			return fmt.Errorf("split destination occurs more than once: service=%q, subset=%q, namespace=\"\", partition=\"\"", service, s.ServiceSubset)
		}
		seen[to] = true
	}
	if hundredths != 100*100 {
		return fmt.Errorf("the sum of all split weights must be 100, not %f", float64(hundredths)/100)
	}
	return nil
}
