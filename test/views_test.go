package test

import (
	"slices"
	"strings"
	"testing"
	"time"

	"eboot/internal/testutil"
)

// Servers whose views differ may both say that they are the best one for a slave, or both
// that the other is. A slave boots all the same, with one round of discovery more at most.
func TestViewsDiffer(t *testing.T) {
	erl := testutil.RequireErl(t)
	c := startBootable(t, erl, 2, "127.0.0.0/8", clusterOptions{})
	ids := []string{c.servers[0].ID(t), c.servers[1].ID(t)}
	reversed := slices.Clone(ids)
	slices.Reverse(reversed)
	restart := func(orders ...[]string) {
		for i, s := range c.servers {
			s.Stop(t)
			s.Process = nil // other settings are for another process
			c.opts.Settings = []string{"EBOOT_BOOT_PRIORITY_MODE=ordered", "EBOOT_BOOT_PRIORITY_ORDER=" + strings.Join(orders[i], ",")}
			s.Start(t)
		}
		c.WaitFormed(t)
	}
	answers := func() (ranks []int) {
		for _, d := range c.discover(t, erl, "127.0.0.1") {
			ranks = append(ranks, int(d.Priority))
		}
		slices.Sort(ranks)
		return ranks
	}
	_, alike := c.boot(t, erl, testutil.SlaveOptions{Hosts: c.Addresses()})
	for _, view := range []struct {
		what   string
		orders [][]string
		ranks  []int
	}{
		{"both are the best", [][]string{ids, reversed}, []int{0, 0}},
		{"neither is", [][]string{reversed, ids}, []int{1, 1}},
	} {
		restart(view.orders...)
		testutil.Poll(t, 30*time.Second, "both are to answer: "+view.what, func() bool { return slices.Equal(answers(), view.ranks) })
		_, exit := c.boot(t, erl, testutil.SlaveOptions{Hosts: c.Addresses()})
		t.Logf("%s: a slave booted in %v, with like views in %v", view.what, exit.Took, alike.Took)
		if exit.Took > alike.Took+2*time.Second {
			t.Errorf("%s: a slave took %v to boot, with like views %v", view.what, exit.Took, alike.Took)
		}
	}
}
