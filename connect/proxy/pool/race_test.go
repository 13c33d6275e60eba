//go:build race

package pool_test

func init() { raced = true }
