package test

import (
	"testing"
	"time"

	"eboot"
	"eboot/api"
	"eboot/internal/testutil"
)

// A node that has booted gets modules of the version it runs, whatever its channel points to
// meanwhile and whichever server it asks, with either loader; the next boot gets the new version. On a
// live channel it gets the newest.
func TestRolloutPins(t *testing.T) {
	t.Parallel()
	erl := testutil.RequireErl(t)
	a, b := makeMarked(t, erl, "A", false), makeMarked(t, erl, "B", false)
	c := startCluster(t, 3, clusterOptions{})
	c.Allow(t, "127.0.0.0/8")
	c.PublishMarked(t, erl, a, true)
	c.PublishMarked(t, erl, b, false)
	point := func(to *markedTree) {
		t.Helper()
		if _, err := c.client.SetChannel(t.Context(), eboot.DefaultChannel, api.ChannelSet{Bundle: to.Ref}); err != nil {
			t.Fatal(err)
		}
		c.WaitApplied(t)
	}
	boot := func(want string) *node {
		t.Helper()
		c.WaitReady(t, erl, bootSlave)
		n := startMarkedNode(t, erl, c, nil)
		if got := n.WaitRuns(t, 1, bootDeadline); got != want {
			t.Fatalf("node runs %s, want %s", got, want)
		}
		return n
	}
	load := func(n *node, what, want string) {
		t.Helper()
		if got := n.Late(t); got != want {
			t.Errorf("%s: a module of version %s, want %s", what, got, want)
		}
		n.Kill()
	}
	for _, loader := range []string{eboot.LoaderEboot, eboot.LoaderStock} {
		c.setOptions(t, eboot.ChannelOptions{Loader: loader})
		point(a)
		n := boot("A")
		point(b)
		c.Run(t, "bundle", "show", a.Ref.String()).want(t, 0).says(t, bootSlave)
		load(n, loader+", after the channel has moved", "A")

		point(a)
		n = boot("A")
		point(b)
		used := c.usedBy(t)
		used.Kill()
		load(n, loader+", from another server", "A")
		used.Start(t)
		c.WaitFormed(t)
		load(boot("B"), loader+", booted after the move", "B")
	}

	c.setOptions(t, eboot.ChannelOptions{Loader: eboot.LoaderEboot, Live: eboot.LiveOn})
	point(a)
	n := boot("A")
	point(b)
	load(n, "live", "B")
}

// usedBy is the server that the latest boot of the node of this machine came from, once it
// is over.
func (c *serverCluster) usedBy(t testing.TB) *clusterServer {
	t.Helper()
	var used *clusterServer
	testutil.Poll(t, bootDeadline, "the latest boot is to be over, and known", func() bool {
		boots, err := c.client.Boots(t.Context(), bootSlaveAddress)
		if err != nil {
			t.Fatal(err)
		}
		if len(boots) == 0 || boots[0].Phase == eboot.BootLoading || time.Since(boots[0].Latest) < time.Second {
			return false
		}
		for _, s := range c.servers {
			if s.ID(t) == boots[0].Server {
				used = s
			}
		}
		return used != nil
	})
	return used
}
