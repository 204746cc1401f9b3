package api

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/hashicorp/go-hclog"

	"eboot"
)

// fewAnswers is a backend that answers what these tests ask; another question is a
// nil pointer.
type fewAnswers struct {
	Backend
	stale  error
	done   []string
	starts []RolloutStart // of plans too
	past   []eboot.Event
	coming chan eboot.Event // each goes to one follower
	// followed gets a value when there is a follower; nil: nobody wants to know.
	followed chan struct{}
}

func (b *fewAnswers) Fresh(ctx context.Context) error {
	if _, bounded := ctx.Deadline(); !bounded {
		return errors.New("asked without a deadline")
	}
	b.done = append(b.done, "fresh")
	return b.stale
}

func (b *fewAnswers) Entries() []eboot.WhitelistEntry { return nil }
func (b *fewAnswers) Channels() []eboot.Channel       { return nil }
func (b *fewAnswers) Bundles() []BundleDetail         { return nil }
func (b *fewAnswers) Check(a netip.Addr) SlaveCheck   { return SlaveCheck{Slave: a} }

func (b *fewAnswers) Channel(name string) (eboot.Channel, error) {
	return eboot.Channel{}, fmt.Errorf("channel %s: %w", name, eboot.ErrNotFound)
}

func (b *fewAnswers) Bundle(ref eboot.Ref) ([]BundleDetail, error) {
	return nil, fmt.Errorf("bundle %s: %w", ref, eboot.ErrNotFound)
}

func (b *fewAnswers) BootScript(_ context.Context, ref eboot.Ref, erts string) (BootScript, error) {
	if erts != "15.0" {
		return BootScript{}, fmt.Errorf("bundle %s: %w", ref, eboot.ErrNotFound)
	}
	return BootScript{Path: "bin/start.boot", Before: "a", After: "b", Warning: "c"}, nil
}

func (b *fewAnswers) SetChannel(_ context.Context, w Write, channel string, set ChannelSet) (WriteResult, error) {
	b.done = append(b.done, fmt.Sprintf("set %s %+v %t", channel, set, w.RequestID != ""))
	return WriteResult{Generation: 6, Changed: true}, nil
}

func (b *fewAnswers) FollowBoots(ctx context.Context) <-chan eboot.Boot {
	boots := make(chan eboot.Boot, 1)
	boots <- eboot.Boot{}
	context.AfterFunc(ctx, func() { close(boots) })
	return boots
}

func (b *fewAnswers) SaveSnapshot(_ context.Context, _ eboot.Actor, w io.Writer) (SnapshotInfo, error) {
	_, err := io.WriteString(w, "state")
	return SnapshotInfo{Generation: 5}, err
}

func (b *fewAnswers) Status() eboot.ClusterStatus {
	return eboot.ClusterStatus{Cluster: "prod", Server: "a1"}
}

func (b *fewAnswers) Members(context.Context) (eboot.Membership, error) {
	return eboot.Membership{Cluster: "prod", FailureTolerance: 1, Members: []eboot.MemberDetail{{Member: eboot.Member{ID: "a1", Voter: true}, Health: eboot.HealthAlive}}}, nil
}

func (b *fewAnswers) InitCluster(context.Context) error {
	b.done = append(b.done, "init")
	return nil
}

func (b *fewAnswers) DrainServer(_ context.Context, w Write, id string, drained bool) (WriteResult, error) {
	b.done = append(b.done, fmt.Sprintf("drain %s %t %t", id, drained, w.RequestID != ""))
	return WriteResult{Generation: 3, Changed: true}, nil
}

func (b *fewAnswers) TransferLeadership(_ context.Context, _ eboot.Actor, to string) (string, error) {
	b.done = append(b.done, "transfer "+to)
	return "b2", nil
}

func (b *fewAnswers) RemoveServer(_ context.Context, w Write, id string, replace bool) (WriteResult, error) {
	b.done = append(b.done, fmt.Sprintf("remove %s %t %t", id, replace, w.RequestID != ""))
	return WriteResult{Generation: 4, Changed: true}, nil
}

func serve(t *testing.T, b *fewAnswers, o ClientOptions) *Client {
	t.Helper()
	s := NewServer(ServerOptions{Logger: hclog.NewNullLogger(), Metrics: http.NotFoundHandler(), Live: func() error { return nil }, Backend: b})
	server := httptest.NewServer(s.handler(DoorInsecure))
	t.Cleanup(server.Close)
	o.Addresses = []string{server.URL}
	c, err := NewClient(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

// What a server cannot be sure of, it says beside its answer, or its refusal.
func TestReadsSayWhenTheyAreStale(t *testing.T) {
	ctx := context.Background()
	reads := map[string]func(*Client) error{
		"whitelist": func(c *Client) error { _, err := c.Whitelist(ctx); return err },
		"check":     func(c *Client) error { _, err := c.Check(ctx, netip.MustParseAddr("10.0.0.1")); return err },
		"channels":  func(c *Client) error { _, err := c.Channels(ctx); return err },
		"channel":   func(c *Client) error { _, err := c.Channel(ctx, "canary"); return err },
		"bundles":   func(c *Client) error { _, err := c.Bundles(ctx); return err },
		"bundle":    func(c *Client) error { _, err := c.Bundle(ctx, eboot.Ref{Name: "app", Version: "1"}); return err },
		"script": func(c *Client) error {
			_, err := c.BootScript(ctx, eboot.Ref{Name: "app", Version: "1"}, "15.0")
			return err
		},
		"rollouts": func(c *Client) error { _, err := c.Rollouts(ctx); return err },
		"rollout":  func(c *Client) error { _, err := c.Rollout(ctx, "stable"); return err },
		"plan":     func(c *Client) error { _, err := c.PlanRollout(ctx, "stable", NewRolloutStart(app2)); return err },
		"diff":     func(c *Client) error { _, err := c.DiffBundles(ctx, app2, app2, ""); return err },
		"slaves":   func(c *Client) error { _, err := c.Slaves(ctx); return err },
		"events":   func(c *Client) error { _, err := c.Events(ctx); return err },
	}
	for name, read := range reads {
		want := error(nil)
		if name == "channel" || name == "bundle" {
			want = eboot.ErrNotFound
		}
		for _, tc := range []struct {
			stale error
			take  bool
			heard string
			asked int
		}{
			{nil, false, "", 1},
			{fmt.Errorf("no leader is known;\nb2 is missing: %w", eboot.ErrNoLeader), false, "no leader is known; b2 is missing: no leader", 1},
			{eboot.ErrNoLeader, true, "", 0},
		} {
			b := &fewAnswers{stale: tc.stale}
			var heard []string
			c := serve(t, b, ClientOptions{Stale: tc.take, OnStale: func(reason string) { heard = append(heard, reason) }})
			if err := read(c); !errors.Is(err, want) {
				t.Errorf("%s: %v", name, err)
			}
			if got := strings.Join(heard, "|"); got != tc.heard || len(b.done) != tc.asked {
				t.Errorf("%s: stale %q, want %q; the server made sure %d times, want %d", name, got, tc.heard, len(b.done), tc.asked)
			}
		}
	}
}

func TestMembershipOverTheWire(t *testing.T) {
	ctx := context.Background()
	b := &fewAnswers{}
	c := serve(t, b, ClientOptions{})
	m, err := c.Members(ctx)
	if want, _ := b.Members(ctx); err != nil || !cmp.Equal(m, want) {
		t.Errorf("members: %+v, %v", m, err)
	}
	if founded, err := c.InitCluster(ctx); err != nil || founded != (ClusterFounded{Cluster: "prod", Server: "a1"}) {
		t.Errorf("init: %+v, %v", founded, err)
	}
	if r, err := c.DrainServer(ctx, Self, true); err != nil || r.Generation != 3 {
		t.Errorf("drain: %+v, %v", r, err)
	}
	if _, err := c.DrainServer(ctx, "b2", false); err != nil {
		t.Errorf("undrain: %v", err)
	}
	if r, err := c.TransferLeadership(ctx, ""); err != nil || r.Leader != "b2" {
		t.Errorf("transfer: %+v, %v", r, err)
	}
	if _, err := c.RemoveServer(ctx, "b2", false); err != nil {
		t.Errorf("remove: %v", err)
	}
	if _, err := c.RemoveServer(ctx, "b2", true); err != nil {
		t.Errorf("replace: %v", err)
	}
	want := []string{"init", "drain self true true", "drain b2 false true", "transfer ", "remove b2 false true", "remove b2 true true"}
	if !cmp.Equal(b.done, want) {
		t.Errorf("%q", b.done)
	}
	for _, bad := range []string{"a b", "..", strings.Repeat("x", 65)} {
		if _, err := c.RemoveServer(ctx, bad, false); !errors.Is(err, eboot.ErrInvalid) {
			t.Errorf("remove %q: %v", bad, err)
		}
		if _, err := c.TransferLeadership(ctx, bad); !errors.Is(err, eboot.ErrInvalid) {
			t.Errorf("transfer %q: %v", bad, err)
		}
	}
}

func TestChannelsAndScriptsOverTheWire(t *testing.T) {
	ctx := context.Background()
	b := &fewAnswers{}
	c := serve(t, b, ClientOptions{Stale: true})
	ref := eboot.Ref{Name: "app", Version: "1"}
	if got, err := c.BootScript(ctx, ref, "15.0"); err != nil || got != (BootScript{Path: "bin/start.boot", Before: "a", After: "b", Warning: "c"}) {
		t.Errorf("%+v, %v", got, err)
	}
	if _, err := c.BootScript(ctx, ref, ""); !errors.Is(err, eboot.ErrNotFound) {
		t.Errorf("for any ERTS version: %v", err)
	}
	options := eboot.ChannelOptions{Loader: "stock", Control: "on"}
	var want []string
	for _, set := range []ChannelSet{{Bundle: ref, ERTS: "15.0"}, {Options: options}, {Bundle: ref, Options: options}} {
		if r, err := c.SetChannel(ctx, "canary", set); err != nil || r.Generation != 6 {
			t.Errorf("%+v: %+v, %v", set, r, err)
		}
		want = append(want, fmt.Sprintf("set canary %+v true", set))
	}
	if !cmp.Equal(b.done, want) {
		t.Errorf("%q", b.done)
	}
}
