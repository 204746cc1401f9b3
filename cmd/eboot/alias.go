package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"

	"github.com/spf13/cobra"

	"eboot"
	"eboot/api"
)

// otpAliases are the functions of OTP's erl_boot_server under their own names
// and with their meaning (erl_boot_server.erl): adding what is there and deleting
// what is not are both fine, and a slave may be named by its host name.
func (c *command) otpAliases() []*cobra.Command {
	aliases := []*cobra.Command{
		{Use: "add-slave HOST", Args: arguments(1, 1), RunE: c.otpAdd(hostPrefix)},
		{Use: "delete-slave HOST", Args: arguments(1, 1), RunE: c.otpDelete(hostPrefix)},
		{Use: "add-subnet NETMASK ADDR", Args: arguments(2, 2), RunE: c.otpAdd(subnetPrefix)},
		{Use: "delete-subnet NETMASK ADDR", Args: arguments(2, 2), RunE: c.otpDelete(subnetPrefix)},
		c.read(&cobra.Command{Use: "which-slaves", Args: arguments(0, 0), RunE: c.withClient(c.listEntries)}),
		c.read(&cobra.Command{Use: "would-be-booted HOST", Args: arguments(1, 1), RunE: c.withClient(c.wouldBeBooted)}),
	}
	for _, a := range aliases {
		a.Hidden = true
		a.Short = "As erl_boot_server's function of that name"
	}
	return aliases
}

type prefixParser func(ctx context.Context, args []string) (netip.Prefix, error)

// hostPrefix takes an address or a host name, as inet:getaddr/2 does.
func hostPrefix(ctx context.Context, args []string) (netip.Prefix, error) {
	if addr, err := eboot.ParseAddr(args[0]); err == nil {
		return netip.PrefixFrom(addr, 32), nil
	}
	addrs, err := net.DefaultResolver.LookupNetIP(ctx, "ip4", args[0])
	if err != nil || len(addrs) == 0 {
		return netip.Prefix{}, fmt.Errorf("host %q: is neither an IPv4 address nor a name that resolves to one: %w", args[0], eboot.ErrInvalid)
	}
	return netip.PrefixFrom(addrs[0].Unmap(), 32), nil
}

// subnetPrefix takes a netmask and an address in that subnet.
func subnetPrefix(_ context.Context, args []string) (netip.Prefix, error) {
	mask, err := eboot.ParseAddr(args[0])
	if err != nil {
		return netip.Prefix{}, fmt.Errorf("netmask: %w", err)
	}
	addr, err := eboot.ParseAddr(args[1])
	if err != nil {
		return netip.Prefix{}, err
	}
	ones, bits := net.IPMask(mask.AsSlice()).Size()
	if bits == 0 {
		return netip.Prefix{}, fmt.Errorf("netmask %s: its bits are not contiguous: %w", mask, eboot.ErrInvalid)
	}
	return addr.Prefix(ones)
}

func (c *command) otpAdd(parse prefixParser) func(*cobra.Command, []string) error {
	return c.withClient(func(ctx context.Context, client *api.Client, args []string) error {
		prefix, err := parse(ctx, args)
		if err != nil {
			return err
		}
		entries, err := client.Whitelist(ctx)
		if err != nil {
			return err
		}
		for _, e := range entries {
			if e.Prefix == prefix {
				return c.otpOK() // its channel and labels stay
			}
		}
		if _, err := client.Allow(ctx, eboot.WhitelistEntry{Prefix: prefix}); err != nil {
			return err
		}
		return c.otpOK()
	})
}

func (c *command) otpDelete(parse prefixParser) func(*cobra.Command, []string) error {
	return c.withClient(func(ctx context.Context, client *api.Client, args []string) error {
		prefix, err := parse(ctx, args)
		if err != nil {
			return err
		}
		if _, err := client.Deny(ctx, prefix); err != nil && !errors.Is(err, eboot.ErrNotFound) {
			return err
		}
		return c.otpOK()
	})
}

func (c *command) otpOK() error {
	return c.print("ok", func(w io.Writer) error {
		_, err := fmt.Fprintln(w, "ok")
		return err
	})
}

func (c *command) wouldBeBooted(ctx context.Context, client *api.Client, args []string) error {
	prefix, err := hostPrefix(ctx, args)
	if err != nil {
		return err
	}
	check, err := client.Check(ctx, prefix.Addr())
	if err != nil {
		return err
	}
	return c.print(check.Whitelisted, func(w io.Writer) error {
		_, err := fmt.Fprintln(w, check.Whitelisted)
		return err
	})
}
