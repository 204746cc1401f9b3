package test

import (
	"context"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"eboot"
	"eboot/internal/testutil"
)

// Slaves of two ERTS versions boot side by side from one channel, each its own bundle, and
// are rolled out together. A third version, of which there is none, is refused, and that is told
// everywhere.
func TestRolloutERTSVersions(t *testing.T) {
	versions := []string{"13.1.5", "14.2"}
	const third, stranger = "15.0.1", "127.0.7.3"
	slaves := []string{"127.0.7.1", "127.0.7.2"}
	c := startCluster(t, 3, clusterOptions{Roots: testRoots})
	c.Allow(t, "127.0.0.0/8")
	for _, version := range []string{"1", "2"} {
		for _, erts := range versions {
			channel := ""
			if version == "1" {
				channel = eboot.DefaultChannel
			}
			publishFor(t, c.client, eboot.Ref{Name: "app", Version: version}, release(t, version+" for "+erts), channel, erts)
		}
	}
	boot := func(want string) {
		t.Helper()
		for i, erts := range versions {
			c.WaitReady(t, testutil.Erlang{ERTS: erts}, slaves[i])
			script := bootText(t, c, slaves[i], erts)
			if script != "script of "+want+" for "+erts {
				t.Errorf("slave with ERTS %s gets %q, want %s", erts, script, want)
			}
		}
	}
	boot("1")
	for range 2 {
		if answers := c.discover(t, testutil.Erlang{ERTS: third}, stranger); len(answers) != 0 {
			t.Errorf("discovery for ERTS %s is answered: %+v", third, answers)
		}
	}
	for _, s := range c.servers {
		s.until(t, 10*time.Second, []string{"slave.refused", stranger, third}, "events", "-o", "json")
		s.until(t, 10*time.Second, []string{"would not boot", third}, "slave", "explain", stranger)
		s.until(t, 10*time.Second, []string{`"refusal"`, stranger, third}, "slave", "list", "-o", "json")
		if n := metric(t, s, "eboot_discovery_without_bundle_total"); n < 2 {
			t.Errorf("%s counts %v searches without a bundle, want 2", s.Name, n)
		}
	}
	plan := c.Run(t, "rollout", "plan", eboot.DefaultChannel, "app@2").want(t, 0)
	plan.says(t, versions[0], versions[1], "no bundle for ERTS "+third)

	c.Run(t, "rollout", "start", eboot.DefaultChannel, "app@2", "--min-healthy", "0s").want(t, 0)
	c.WaitApplied(t)
	boot("2")
	r := c.WaitRollout(t, bootDeadline, eboot.RolloutSucceeded)
	if len(r.Base) != len(versions) {
		t.Errorf("the rollout moved %v, want both ERTS versions", r.Base)
	}
	channel, err := c.client.Channel(t.Context(), eboot.DefaultChannel)
	if err != nil {
		t.Fatal(err)
	}
	for _, erts := range versions {
		if got := channel.Bundles[erts]; got != r.Target {
			t.Errorf("ERTS %s: the channel points to %s, want %s", erts, got, r.Target)
		}
	}
	c.Run(t, "channel", "undo", eboot.DefaultChannel).want(t, 0)
	c.WaitApplied(t)
	boot("1")
}

// bootText boots a simulated stock slave and returns its boot script, which is a text, after
// it has checked that the module is of the same version.
func bootText(t *testing.T, c *serverCluster, slave, erts string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), bootDeadline)
	defer cancel()
	s := testutil.NewSession(testutil.SessionOptions{Servers: c.Addresses(), ERTS: erts, Local: slave, Root: testRoots[0]})
	t.Cleanup(s.Close) // one that closes now is taken for one that crashed
	found, err := s.Search(500 * time.Millisecond)
	if err != nil || len(found) == 0 {
		t.Fatalf("slave %s finds no server: %v", slave, err)
	}
	if err := s.Connect(found[0]); err != nil {
		t.Fatal(err)
	}
	ask := func(path string) string {
		reply, err := s.Request(testutil.Tuple{testutil.Atom("get"), testRoots[0] + "/" + path})
		if err != nil || ctx.Err() != nil {
			t.Fatalf("get %s: %v", path, err)
		}
		return testutil.Format(reply)
	}
	script := textIn(ask("bin/start.boot"), "script of ")
	if code := textIn(ask("lib/app-1/ebin/m.beam"), "code of "); strings.TrimPrefix(code, "code of ") != strings.TrimPrefix(script, "script of ") {
		t.Errorf("slave %s gets %q and %q", slave, script, code)
	}
	return script
}

func textIn(reply, start string) string {
	_, rest, _ := strings.Cut(reply, start)
	end := strings.IndexByte(rest, '"')
	return start + rest[:max(0, end)]
}

var metricLine = regexp.MustCompile(`(?m)^(\w+)(?:\{[^}]*\})? (\S+)$`)

// metric is the value of a metric of a server, the sum of all that have its name.
func metric(t testing.TB, s *clusterServer, name string) (sum float64) {
	t.Helper()
	known := false
	for _, found := range metricLine.FindAllStringSubmatch(s.scrape(t), -1) {
		if found[1] == name {
			n, err := strconv.ParseFloat(found[2], 64)
			if err != nil {
				t.Fatal(err)
			}
			known, sum = true, sum+n
		}
	}
	if !known {
		t.Errorf("%s has no metric %s", s.Name, name)
	}
	return sum
}
