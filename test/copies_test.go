package test

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"eboot"
	"eboot/api"
	"eboot/internal/testutil"
)

// shortWait is publish.wait of these tests.
const (
	shortWait        = 2 * time.Second
	shortWaitSetting = "EBOOT_PUBLISH_WAIT=2s"
)

// publishLimit is what a publish may take that waits for a laggard: publish.wait, a second
// in which servers are asked whether they are ready, and what a busy machine takes.
const publishLimit = shortWait + 3*time.Second

// publishDelayed publishes app@2 while laggard cannot take it: it is visible soon, and the
// laggard is named.
func (c *serverCluster) publishDelayed(t *testing.T, laggard *clusterServer) commandRun {
	t.Helper()
	r := run(t, c.Others(laggard), "bundle", "publish", "app", "2", release(t, "2"), "--erts", fakeErlang.ERTS, "--channel", "stable").want(t, 0)
	r.says(t, "warning: server "+laggard.ID(t), laggard.Address, "does not have app@2 yet", "published app@2", "channel stable points to app@2")
	for _, s := range c.Others(laggard) {
		if strings.Contains(r.Err, s.ID(t)) {
			t.Errorf("names %s, which was well: %v", s.Name, r)
		}
	}
	if r.Took > publishLimit {
		t.Errorf("a publish with one server that cannot take it took %v, publish.wait is %v: %v", r.Took, shortWait, r)
	}
	return r
}

// waitHolds waits until s has every blob of the ref, by the word of any other server too.
func (c *serverCluster) waitHolds(t testing.TB, s *clusterServer, ref eboot.Ref) {
	t.Helper()
	for _, asked := range []*clusterServer{s, c.Others(s)[0]} {
		testutil.Poll(t, formDeadline, s.Name+" is to hold "+ref.String(), func() bool {
			details, err := asked.Client.Bundle(t.Context(), ref)
			if err != nil || len(details) != 1 {
				return false
			}
			return slices.ContainsFunc(details[0].Copies, func(c api.BundleCopy) bool {
				return c.Server == s.id && c.Blobs > 0 && c.Missing == 0 && c.Problem == ""
			})
		})
	}
	if v, err := s.Client.VerifyBundle(t.Context(), ref, nil); err != nil || !v.OK() || v.Checked == 0 {
		t.Errorf("bundle %s on %s: %+v, %v", ref, s.Name, v, err)
	}
}

var app2 = eboot.Ref{Name: "app", Version: "2"}

// TestAcceptancePublishWithHungServer: a server that hangs delays a publish by publish.wait at most,
// and has the bundle soon after it goes on.
func TestAcceptancePublishWithHungServer(t *testing.T) {
	c := startFake(t, 3, shortWaitSetting)
	laggard := c.Followers(t)[0]
	laggard.ID(t)
	laggard.Pause()
	r := c.publishDelayed(t, laggard)
	c.waitAnswering(t, c.Others(laggard)...)
	laggard.Resume()
	began := time.Now()
	c.waitHolds(t, laggard, app2)
	c.WaitReady(t, fakeErlang, "127.0.0.1")
	t.Logf("a publish with one of three servers hung took %v with publish.wait %v; that server was ready %v after it went on",
		r.Took.Round(time.Millisecond), shortWait, time.Since(began).Round(time.Millisecond))
}

// TestAcceptancePublishWithFullServer: a server whose disk is full delays a publish by
// publish.wait, answers no slave of that bundle, and has it soon after there is space.
func TestAcceptancePublishWithFullServer(t *testing.T) {
	testutil.RequireRoot(t)
	c := newCluster(t, 3, clusterOptions{Roots: testRoots, Settings: []string{shortWaitSetting}})
	laggard := c.servers[2]
	// The store leaves 256 MiB to Raft. What is not written takes no memory.
	if err := unix.Mount("tmpfs", laggard.DataDir, "tmpfs", 0, "size=320m"); err != nil {
		t.Skipf("cannot mount a small disk: %v", err)
	}
	t.Cleanup(func() { _ = unix.Unmount(laggard.DataDir, unix.MNT_DETACH) })
	for _, s := range c.servers {
		s.Start(t)
	}
	c.WaitFormed(t)
	c.Publish(t, fakeErlang, "app", "1", release(t, "1"))
	c.Allow(t, "127.0.0.0/8")
	c.WaitReady(t, fakeErlang, "127.0.0.1")

	filler := filepath.Join(laggard.DataDir, "filler")
	write(t, filler, "")
	f, err := os.OpenFile(filler, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := unix.Fallocate(int(f.Fd()), 0, 0, 70<<20); err != nil {
		t.Fatal(err)
	}
	r := c.publishDelayed(t, laggard)
	r.says(t, "MiB free on disk")
	laggard.until(t, 10*time.Second, []string{"not ready: bundle app@2"}, "cluster", "ready").want(t, 1)
	c.waitAnswering(t, c.Others(laggard)...)
	c.Others(laggard)[0].until(t, 10*time.Second, []string{laggard.ID(t) + ": bundle app@2"}, "cluster", "members")
	allowWithin(t, c.client, "10.0.0.1", 5*time.Second) // Raft has its space

	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	_ = f.Close()
	began := time.Now()
	c.waitHolds(t, laggard, app2)
	c.WaitReady(t, fakeErlang, "127.0.0.1")
	t.Logf("a publish with a full disk on one of three servers took %v with publish.wait %v; that server was ready %v after it had space",
		r.Took.Round(time.Millisecond), shortWait, time.Since(began).Round(time.Millisecond))
}

// TestAcceptanceDamageIsRepairedFromPeer: a blob that is found damaged comes anew from another server.
func TestAcceptanceDamageIsRepairedFromPeer(t *testing.T) {
	c := startFake(t, 3)
	victim := c.Followers(t)[0]
	content := []byte("code of 1") // as release writes it
	digest := eboot.DigestOf(content).String()
	found, err := filepath.Glob(filepath.Join(victim.DataDir, "store", "blobs", "*", digest))
	if err != nil || len(found) != 1 {
		t.Fatalf("blob %s: %v, %v", digest, found, err)
	}
	if err := os.Chmod(found[0], 0o600); err != nil {
		t.Fatal(err)
	}
	write(t, found[0], "code of X")
	victim.Run(t, "bundle", "verify", "app@1").want(t, 1).says(t, digest[:8])
	began := time.Now()
	testutil.Poll(t, 20*time.Second, "damaged blob is to be repaired", func() bool {
		data, err := os.ReadFile(found[0])
		return err == nil && string(data) == string(content)
	})
	took := time.Since(began)
	victim.until(t, 10*time.Second, []string{"ready\n"}, "cluster", "ready").want(t, 0)
	victim.Run(t, "bundle", "verify", "app@1").want(t, 0)
	c.WaitReady(t, fakeErlang, "127.0.0.1")
	t.Logf("a damaged blob was whole again %v after it was found", took.Round(time.Millisecond))
}

// TestAcceptanceTooFewCopies asks for a copy on a server that is dead: nothing becomes visible.
func TestAcceptanceTooFewCopies(t *testing.T) {
	acceptanceOnly(t)
	c := startFake(t, 3, shortWaitSetting)
	dead := c.Followers(t)[0]
	dead.ID(t)
	dead.Kill()
	args := []string{"bundle", "publish", "app", "2", release(t, "2"), "--erts", fakeErlang.ERTS, "--channel", "stable"}
	r := run(t, c.Others(dead), append(args, "--min-copies", "3")...).want(t, 1, 7)
	r.says(t, "2 of 3 servers hold it, want 3", dead.id, dead.Address, "nothing is visible")
	for _, s := range c.Others(dead) {
		if list := s.Run(t, "bundle", "list").want(t, 0); strings.Contains(list.Out, "app@2") {
			t.Errorf("a bundle with too few copies is visible: %v", list)
		}
	}
	t.Logf("--min-copies 3 with one of three servers dead: exit %d after %v: %s", r.Code, r.Took.Round(time.Millisecond), strings.TrimSpace(r.Err))
	r = run(t, c.Others(dead), append(args, "--min-copies", "4")...).want(t, 3)
	r.says(t, "4 copies asked for, the cluster has 3 servers")
	run(t, c.Others(dead), args...).want(t, 0).says(t, "published app@2", dead.id)
	dead.Start(t)
	c.waitHolds(t, dead, app2)
}
