package peerrpc

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"eboot"
)

// A list of empty pins is short as text and long in memory: it ends at a number, not at
// a size.
func TestPinsAreBounded(t *testing.T) {
	t.Parallel()
	many := "[" + strings.Repeat("{},", maxPins) + "{}]"
	if _, err := readPins(strings.NewReader(many)); !errors.Is(err, eboot.ErrTooLarge) {
		t.Errorf("%d pins: %v", maxPins+1, err)
	}
	for _, wrong := range []string{"", "{}", "[", "[1]", "[{},"} {
		if _, err := readPins(strings.NewReader(wrong)); !errors.Is(err, eboot.ErrInvalid) {
			t.Errorf("%q: %v", wrong, err)
		}
	}
}

// Requests beyond the limit are refused, not queued.
func TestRequestsAreBounded(t *testing.T) {
	t.Parallel()
	entered, release := make(chan struct{}, maxRequests+1), make(chan struct{})
	c := connected(t, &answers{apply: func([]byte) ([]byte, error) {
		entered <- struct{}{}
		<-release
		return []byte("done"), nil
	}})
	ended := make(chan error, maxRequests)
	for range maxRequests {
		go func() {
			_, err := c.Apply(context.Background(), "b", []byte("entry"))
			ended <- err
		}()
	}
	for range maxRequests {
		<-entered
	}
	another := connectedTo(t, c)
	if _, err := another.Apply(t.Context(), "b", []byte("entry")); !errors.Is(err, eboot.ErrUnavailable) {
		t.Errorf("one more: %v", err)
	}
	close(release)
	for range maxRequests {
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}
}

// connectedTo returns a client with connections of its own to the server of another.
func connectedTo(t *testing.T, c *Client) *Client {
	t.Helper()
	transport := c.http.Transport.(*http.Transport).Clone()
	other := &Client{http: &http.Client{Transport: transport}}
	t.Cleanup(other.Close)
	return other
}

// A leader that dies while it works on a second entry over the same connection has
// perhaps made it, whatever a repeat of the request meets.
func TestReusedConnectionBreaks(t *testing.T) {
	t.Parallel()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	done := make(chan struct{})
	go func() {
		defer close(done)
		conn, err := ln.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		r := bufio.NewReader(conn)
		for first := true; ; first = false {
			request, err := http.ReadRequest(r)
			if err != nil {
				return
			}
			if _, err := io.Copy(io.Discard, request.Body); err != nil {
				return
			}
			if !first {
				ln.Close()
				return
			}
			if _, err := conn.Write([]byte("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")); err != nil {
				return
			}
		}
	}()
	c := NewClient(func(ctx context.Context, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "tcp", ln.Addr().String())
	})
	defer c.Close()
	if _, err := c.Apply(t.Context(), "b", []byte("one")); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Apply(t.Context(), "b", []byte("two")); !errors.Is(err, eboot.ErrUnknownOutcome) {
		t.Errorf("the entry arrived: %v", err)
	}
	<-done
}

// Nothing was sent while the connection did not come about.
func TestDialHangs(t *testing.T) {
	t.Parallel()
	c := NewClient(func(ctx context.Context, _ string) (net.Conn, error) {
		<-ctx.Done()
		return nil, ctx.Err()
	})
	defer c.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := c.Apply(ctx, "b", []byte("one")); !errors.Is(err, eboot.ErrUnreachable) || errors.Is(err, eboot.ErrUnknownOutcome) {
		t.Errorf("never sent: %v", err)
	}
}
