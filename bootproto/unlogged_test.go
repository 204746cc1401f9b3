package bootproto

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
)

// A query that is not worth a line gets none, and is counted all the same.
func TestUnloggedRefusal(t *testing.T) {
	var log bytes.Buffer // read when Serve has ended
	d := NewDiscovery(DiscoveryOptions{
		Logger: hclog.New(&hclog.LoggerOptions{Output: &log, Level: hclog.Debug}),
		Answerer: answererFunc(func(q Query) (Offer, error) {
			if q.ERTS == "1" {
				return Offer{}, fmt.Errorf("%w: no slave", ErrUnlogged)
			}
			return Offer{}, fmt.Errorf("a slave that is not known")
		}),
	})
	conn, err := listenDiscovery(netip.MustParseAddr("127.0.0.1"), 0)
	if err != nil {
		t.Fatal(err)
	}
	port := conn.LocalAddr().(*net.UDPAddr).Port
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { ended <- d.Serve(ctx, conn) }()
	asking, err := net.DialUDP("udp4", nil, &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1), Port: port})
	if err != nil {
		t.Fatal(err)
	}
	defer asking.Close() //nolint:errcheck // it was written to only
	for _, query := range []string{"EBOOTQ1", "EBOOTQ2"} {
		if _, err := asking.Write([]byte(query)); err != nil {
			t.Fatal(err)
		}
	}
	deadline := time.After(10 * time.Second)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for d.Stats().Refused < 2 {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("%d queries refused, want 2", d.Stats().Refused)
		}
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if text := log.String(); strings.Contains(text, "no slave") || strings.Count(text, "discovery not answered") != 1 {
		t.Errorf("logged:\n%s", text)
	}
}
