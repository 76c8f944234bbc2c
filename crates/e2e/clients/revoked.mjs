// A client of the workspace that stays until the server sends it away.
import { io } from 'socket.io-client';

const { DISPENSE_ADDRESS: address, DISPENSE_API_KEY: token } = process.env;
const socket = io(`http://${address}`, { path: '/workspace/web', auth: { token }, reconnection: false });
let code = '';
socket.on('connect', () => console.log('connected'));
socket.on('error', (error) => (code = error.code));
socket.on('disconnect', (reason) => console.log(`${code} ${reason}`));
