package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/pflag"

	"eboot"
	"eboot/api"
	"eboot/config"
	"eboot/internal/fsutil"
	"eboot/internal/identity"
)

// maxFile bounds what a flag names: certificates, keys, tokens, a list of servers.
const maxFile = 1 << 20

// serverFlags say where the servers are, whom to trust and who is asking. Each may come from the environment.
type serverFlags struct {
	address, token, authority, certificate, key string
}

func (f *serverFlags) add(flags *pflag.FlagSet) {
	flags.StringVar(&f.address, "address", "", "API addresses of servers of one cluster, comma separated: when one fails the next is asked (EBOOT_ADDRESS; default the socket "+
		config.DefaultSocket+" where it is, else "+api.DefaultAddress+")")
	flags.StringVar(&f.token, "token", "", "@FILE with an API token (EBOOT_TOKEN: the token itself, or @FILE)")
	flags.StringVar(&f.authority, "ca-cert", "", "file with the certificate of the cluster's authority, for https:// addresses (EBOOT_CA_CERT; default the authorities of this machine)")
	flags.StringVar(&f.certificate, "client-cert", "", "file with the certificate of an operator (EBOOT_CLIENT_CERT)")
	flags.StringVar(&f.key, "client-key", "", "file with its key (EBOOT_CLIENT_KEY)")
}

// given is the value of a flag, or that of its variable.
func (c *command) given(flag, variable string) string {
	if flag != "" {
		return flag
	}
	return c.getenv(variable)
}

// named are the addresses that flags and environment name.
func (c *command) named() []string {
	return api.ParseAddresses(c.given(c.server.address, "EBOOT_ADDRESS"))
}

// addresses are those, or where a server of this machine is.
func (c *command) addresses() []string {
	if addresses := c.named(); len(addresses) > 0 {
		return addresses
	}
	return []string{localAddress(config.DefaultSocket)}
}

// localAddress is where a server of this machine is whose socket would be at path. Where only
// others may look, it is there: who goes elsewhere instead is not told to use sudo.
func localAddress(path string) string {
	info, err := os.Stat(path)
	if err == nil && info.Mode()&os.ModeSocket != 0 || errors.Is(err, fs.ErrPermission) {
		return "unix://" + path
	}
	return api.DefaultAddress
}

// client returns a client for the servers that flags and environment name.
func (c *command) client() (*api.Client, error) {
	warned := false
	options := api.ClientOptions{
		Addresses: c.addresses(), Timeout: c.timeout, Stale: c.stale,
		OnStale: func(reason string) {
			if !warned {
				c.warn("this may not be the newest: " + reason)
			}
			warned = true
		},
	}
	if c.generation != "" {
		g, err := strconv.ParseUint(c.generation, 10, 64)
		if err != nil {
			return nil, fmt.Errorf("--expect-generation %q: want a number: %w", c.generation, eboot.ErrInvalid)
		}
		options.ExpectGeneration = &g
	}
	var err error
	if options.Token, err = c.tokenText(); err != nil {
		return nil, err
	}
	if options.Token != "" && slices.Equal(options.Addresses, []string{api.DefaultAddress}) && len(c.named()) == 0 {
		return nil, fmt.Errorf("there is a token and no address to show it at: whoever listens on %s of this machine would get it; --address (EBOOT_ADDRESS) says where the servers are: %w", api.DefaultAddress, eboot.ErrInvalid)
	}
	who, err := c.identity()
	if err != nil {
		return nil, err
	}
	options.TLS = who.TLS
	return api.NewClient(options)
}

// tokenText returns the token to show; empty: none. Arguments can be seen by everybody on this
// machine, so a token does not stand in one.
func (c *command) tokenText() (string, error) {
	where, text := "EBOOT_TOKEN", c.getenv("EBOOT_TOKEN")
	if c.server.token != "" {
		where, text = "--token", c.server.token
		if !strings.HasPrefix(text, "@") {
			return "", fmt.Errorf("--token: want @FILE: everybody on this machine can see arguments; the token itself may stand in EBOOT_TOKEN: %w", eboot.ErrInvalid)
		}
	}
	if name, inFile := strings.CutPrefix(text, "@"); inFile {
		content, err := fsutil.ReadSmall(name, maxFile)
		if err != nil {
			return "", fmt.Errorf("%s: %w", where, err)
		}
		text = string(content)
	}
	if text = strings.TrimSpace(text); text == "" {
		return "", nil
	}
	if _, _, err := eboot.ParseToken(text); err != nil {
		return "", fmt.Errorf("%s: %w", where, err)
	}
	return text, nil
}

// identity is whom the client trusts, and its certificate.
func (c *command) identity() (*identity.Client, error) {
	var content [3][]byte
	names := [3]string{c.given(c.server.authority, "EBOOT_CA_CERT"), c.given(c.server.certificate, "EBOOT_CLIENT_CERT"), c.given(c.server.key, "EBOOT_CLIENT_KEY")}
	flags := [3]string{"--ca-cert", "--client-cert", "--client-key"}
	if (names[1] == "") != (names[2] == "") {
		return nil, fmt.Errorf("--client-cert, --client-key: belong together: %w", eboot.ErrInvalid)
	}
	for i, name := range names {
		if name == "" {
			continue
		}
		var err error
		if content[i], err = fsutil.ReadSmall(name, maxFile); err != nil {
			return nil, fmt.Errorf("%s: %w", flags[i], err)
		}
	}
	who, err := identity.ReadClient(content[0], identity.Pair{Certificate: content[1], Key: content[2]})
	if err != nil {
		return nil, fmt.Errorf("--ca-cert, --client-cert, --client-key: %w", err)
	}
	return who, nil
}
