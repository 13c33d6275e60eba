//go:build race

package http1_test

func init() { raced = true }
