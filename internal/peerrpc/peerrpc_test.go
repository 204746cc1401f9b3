package peerrpc

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"go.uber.org/goleak"

	"eboot"
	"eboot/api"
	"eboot/fleet"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// answers is a server whose answers the test sets.
type answers struct {
	pins   []eboot.Pin
	plans  []eboot.LearnedPlan
	boots  []eboot.Boot
	events []eboot.Event
	told   RestartRequest
	copied CopyRequest
	apply  func(entry []byte) ([]byte, error)
	err    error
}

func (a *answers) Info() ServerInfo {
	return ServerInfo{ID: "b", Bundles: []eboot.BundleOnDisk{{Missing: 0}, {Missing: 3}}, BootAddresses: []netip.Addr{netip.MustParseAddr("10.0.0.1")}}
}
func (a *answers) TakePins(pins []eboot.Pin) { a.pins = append(a.pins, pins...) }
func (a *answers) Pins() []eboot.Pin         { return a.pins }
func (a *answers) TakePlans(plans []eboot.LearnedPlan) {
	a.plans = append(a.plans, plans...)
}
func (a *answers) TakeBoots(boots []eboot.Boot)    { a.boots = append(a.boots, boots...) }
func (a *answers) TakeEvents(events []eboot.Event) { a.events = append(a.events, events...) }
func (a *answers) RestartSlave(r RestartRequest) error {
	a.told = r
	return a.err
}
func (a *answers) CopyBundle(_ context.Context, r CopyRequest) error {
	a.copied = r
	return a.err
}
func (a *answers) ApplyEntry(_ context.Context, entry []byte) ([]byte, error) { return a.apply(entry) }
func (a *answers) ReadIndex(context.Context) (uint64, error)                  { return 7, a.err }
func (a *answers) TransferHere(context.Context, string) error                 { return a.err }
func (a *answers) RemoveHere(_ context.Context, w api.Write, id string, replace bool) (api.WriteResult, error) {
	return api.WriteResult{Changed: w.RequestID == "r" && id == "x" && replace}, a.err
}

var restorer = eboot.Actor{Name: "a&b=c", Via: eboot.ViaToken, From: "10.0.0.1"}

func (a *answers) RestoreHere(_ context.Context, by eboot.Actor, r io.Reader, force bool) (api.SnapshotInfo, error) {
	if by != restorer {
		return api.SnapshotInfo{}, fmt.Errorf("restored by %+v", by)
	}
	data, err := io.ReadAll(r)
	return api.SnapshotInfo{Cluster: string(data), Stale: force}, errors.Join(err, a.err)
}

// connected returns a client of a server with these answers, known as "b".
func connected(t *testing.T, a *answers) *Client {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := NewServer(ServerOptions{Answerer: a, Leader: a, Logger: hclog.NewNullLogger()})
	ctx, stop := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- server.Serve(ctx, ln) }()
	t.Cleanup(func() {
		stop()
		if err := <-served; err != nil && !errors.Is(err, net.ErrClosed) {
			t.Errorf("serve: %v", err)
		}
	})
	client := NewClient(func(ctx context.Context, id string) (net.Conn, error) {
		if id != "b" {
			return nil, fmt.Errorf("server %s is not b: %w", id, eboot.ErrConflict)
		}
		return new(net.Dialer).DialContext(ctx, "tcp", ln.Addr().String())
	})
	t.Cleanup(client.Close)
	return client
}

func TestCalls(t *testing.T) {
	t.Parallel()
	a := &answers{apply: func(entry []byte) ([]byte, error) { return append([]byte("done "), entry...), nil }}
	c := connected(t, a)
	ctx := t.Context()
	info, err := c.Info(ctx, "b")
	if err != nil || info.ID != "b" || info.Holds() != 1 || len(info.BootAddresses) != 1 {
		t.Fatalf("info: %+v, %v", info, err)
	}
	pin := eboot.Pin{Slave: netip.MustParseAddr("10.0.0.9"), ERTS: "13.1.5", Manifest: eboot.DigestOf([]byte("m")), At: time.Unix(5, 0).UTC()}
	if err := c.SendPins(ctx, "b", []eboot.Pin{pin}); err != nil {
		t.Fatal(err)
	}
	if pins, err := c.Pins(ctx, "b"); err != nil || !slices.Equal(pins, []eboot.Pin{pin}) {
		t.Fatalf("pins: %v, %v", pins, err)
	}
	boot := eboot.Boot{BootRecord: eboot.BootRecord{ID: "a-1", Revision: 3}, Slave: pin.Slave, ERTS: "13.1.5", Cured: &eboot.CuredBoot{Number: 1 << 60, Control: true}}
	if err := c.SendBoots(ctx, "b", []eboot.Boot{boot}); err != nil || !reflect.DeepEqual(a.boots, []eboot.Boot{boot}) {
		t.Fatalf("boots: %+v, %v", a.boots, err)
	}
	event := eboot.Event{ID: "a-2", At: pin.At, Kind: eboot.EventBootFailed, Slave: pin.Slave, Text: "x"}
	if err := c.SendEvents(ctx, "b", []eboot.Event{event}); err != nil || !reflect.DeepEqual(a.events, []eboot.Event{event}) {
		t.Fatalf("events: %+v, %v", a.events, err)
	}
	if r := (RestartRequest{Slave: pin.Slave, Number: 1 << 60}); c.RestartSlave(ctx, "b", r) != nil || a.told != r {
		t.Fatalf("restart: %+v", a.told)
	}
	if err := c.CopyBundle(ctx, "b", CopyRequest{From: "a", Bundles: []eboot.Bundle{{Name: "otp"}}}); err != nil || a.copied.Bundles[0].Name != "otp" {
		t.Fatalf("copy: %v", err)
	}
	if result, err := c.Apply(ctx, "b", []byte("entry")); err != nil || string(result) != "done entry" {
		t.Fatalf("apply: %q, %v", result, err)
	}
	if index, err := c.ReadIndex(ctx, "b"); err != nil || index != 7 {
		t.Fatalf("read index: %d, %v", index, err)
	}
	if err := c.Transfer(ctx, "b", ""); err != nil {
		t.Fatal(err)
	}
	if r, err := c.Remove(ctx, "b", api.Write{RequestID: "r"}, "x", true); err != nil || !r.Changed {
		t.Fatalf("remove: %+v, %v", r, err)
	}
	if got, err := c.Restore(ctx, "b", restorer, strings.NewReader("state"), true); err != nil || got.Cluster != "state" || !got.Stale {
		t.Fatalf("restore: %+v, %v", got, err)
	}
}

// Full plans, every byte of which is escaped, arrive whole, more of them than go at once.
func TestFullPlans(t *testing.T) {
	t.Parallel()
	a := &answers{}
	c := connected(t, a)
	learned, err := fleet.New(fleet.Options{})
	if err != nil {
		t.Fatal(err)
	}
	for p := range plansAtOnce + 1 {
		key := eboot.PlanKey{Manifest: eboot.DigestOf([]byte{byte(p)}), Script: strings.Repeat("<", 4096)}
		for f := range 2000 {
			learned.Learn(key, strings.Repeat("<", 127)+fmt.Sprint(1000+f), 4000)
		}
	}
	plans := learned.Plans()
	if err := c.SendPlans(t.Context(), "b", plans); err != nil {
		t.Fatal(err)
	}
	if len(plans[0].Files) != 2000 || !reflect.DeepEqual(a.plans, plans) {
		t.Errorf("%d plans arrived", len(a.plans))
	}
}

// A sentinel is the same on both sides, and a change whose fate nobody knows is not
// taken for one that did not happen.
func TestErrors(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	for _, sentinel := range []error{eboot.ErrNoLeader, eboot.ErrConflict, eboot.ErrUnknownOutcome, eboot.ErrUnavailable, eboot.ErrNotFound} {
		refuse := fmt.Errorf("why: %w", sentinel)
		c := connected(t, &answers{err: refuse, apply: func([]byte) ([]byte, error) { return nil, refuse }})
		_, applied := c.Apply(ctx, "b", nil)
		_, removed := c.Remove(ctx, "b", api.Write{}, "x", false)
		for what, err := range map[string]error{"apply": applied, "remove": removed, "copy": c.CopyBundle(ctx, "b", CopyRequest{})} {
			if !errors.Is(err, sentinel) || !strings.Contains(err.Error(), "why") {
				t.Errorf("%s: %v, want %v", what, err, sentinel)
			}
		}
	}
	c := connected(t, &answers{})
	if _, err := c.Apply(ctx, "other", nil); !errors.Is(err, eboot.ErrUnreachable) || errors.Is(err, eboot.ErrUnknownOutcome) {
		t.Errorf("not connected: %v", err)
	}
	release := make(chan struct{})
	slow := connected(t, &answers{apply: func([]byte) ([]byte, error) { <-release; return nil, nil }})
	t.Cleanup(func() { close(release) })
	short, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
	defer cancel()
	if _, err := slow.Apply(short, "b", nil); !errors.Is(err, eboot.ErrUnknownOutcome) {
		t.Errorf("no answer to a change: %v", err)
	}
}
